package proxy

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// maxWaiting bounds the clients of a listener that have not said yet where they want to go. It costs each of
// them nothing to say nothing, so beyond the bound the one that has waited longest is closed: an honest client
// needs no longer than a packet takes to it and back.
const maxWaiting = 1024

type waiting struct {
	mu sync.Mutex
	// Guarded by mu.
	limit int
	turns list.List // of *turn, the longest wait first
	ended bool
}

// A turn is the place of one client among those who wait.
type turn struct {
	conn   *conn
	pushed atomic.Bool
	at     *list.Element // guarded by waiting.mu
}

func (t *turn) evicted() bool { return t.pushed.Load() }

func (w *waiting) setLimit(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limit = n
}

func (w *waiting) enter(c *conn) *turn {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &turn{conn: c}
	t.at = w.turns.PushBack(t)
	if w.turns.Len() > w.limit {
		w.push(w.turns.Front())
	}
	if w.ended {
		_ = c.Close()
	}
	return t
}

// push closes the connection of one that waits, whose goroutine does the rest.
func (w *waiting) push(at *list.Element) {
	t := w.turns.Remove(at).(*turn)
	t.at = nil
	t.pushed.Store(true)
	_ = t.conn.Close()
}

func (w *waiting) leave(t *turn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.at != nil {
		w.turns.Remove(t.at)
		t.at = nil
	}
}

// end closes all that wait, and those to come.
func (w *waiting) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for w.turns.Len() > 0 {
		w.push(w.turns.Front())
	}
}

// turnedAway counts clients that were closed before they reached a backend, by why; ech counts those that hid
// the name they want behind another one, and were led by that.
type turnedAway struct {
	noName, unknownName, notTLS, plainHTTP, malformed, slow, left, evicted, header, ech, notHost atomic.Uint64
}

func (t *turnedAway) status() *TurnedAway {
	s := &TurnedAway{
		NoName: t.noName.Load(), UnknownName: t.unknownName.Load(), NotTLS: t.notTLS.Load(), PlainHTTP: t.plainHTTP.Load(),
		Malformed: t.malformed.Load(), Slow: t.slow.Load(), Left: t.left.Load(), Evicted: t.evicted.Load(),
		Header: t.header.Load(), ECH: t.ech.Load(), NotHost: t.notHost.Load(),
	}
	if *s == (TurnedAway{}) {
		return nil
	}
	return s
}
