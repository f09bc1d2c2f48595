// Package memory keeps an event log in memory, for tests of what is built on one. Nothing outlives the
// process; within it, a Store outlives its engines as a disk outlives a process.
package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// A Store holds the events of one log.
type Store struct {
	id eventlog.LogID

	mu     sync.Mutex
	epoch  int // counts the engines that were opened
	events []eventlog.Event
	last   eventlog.Checkpoint
}

// NewStore makes an empty store. A zero id draws one.
func NewStore(id eventlog.LogID) *Store {
	if id == (eventlog.LogID{}) {
		id = eventlog.NewID()
	}
	return &Store{id: id}
}

// Engine gives a new engine on the store. The one that was opened last owns it.
func (s *Store) Engine() *Engine { return &Engine{store: s} }

// New gives an engine on an empty store of its own.
func New() *Engine { return NewStore(eventlog.LogID{}).Engine() }

// An Engine is the access of one owner to a Store.
type Engine struct {
	store *Store
	epoch int // guarded by store.mu; 0 while it does not lead
}

var _ eventlog.Engine = (*Engine)(nil)

// Open implements eventlog.Engine.
func (e *Engine) Open(context.Context) (eventlog.Info, error) {
	e.store.mu.Lock()
	defer e.store.mu.Unlock()
	return eventlog.Info{ID: e.store.id, Head: e.store.head()}, nil
}

// Lead implements eventlog.Engine. Nobody holds a store in memory against somebody else.
func (e *Engine) Lead(context.Context) (<-chan struct{}, error) {
	s := e.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	e.epoch = s.epoch
	return nil, nil
}

// Commit implements eventlog.Engine.
func (e *Engine) Commit(_ context.Context, events []eventlog.Event) error {
	s := e.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.epoch == 0 {
		return errors.New("memory engine does not lead")
	}
	if e.epoch != s.epoch {
		return eventlog.ErrFenced
	}
	for i := range events {
		if want := uint64(len(s.events) + i + 1); events[i].Seq != want {
			return fmt.Errorf("event %d where %d belongs", events[i].Seq, want)
		}
	}
	s.events = append(s.events, events...)
	return nil
}

// Head implements eventlog.Engine.
func (e *Engine) Head(context.Context) (eventlog.Head, error) {
	e.store.mu.Lock()
	defer e.store.mu.Unlock()
	return e.store.head(), nil
}

// head is the last event's. The caller holds mu.
func (s *Store) head() eventlog.Head {
	if len(s.events) == 0 {
		return eventlog.Head{Hash: eventlog.Genesis(s.id)}
	}
	last := s.events[len(s.events)-1]
	return eventlog.Head{Seq: last.Seq, Hash: last.Hash}
}

// Scan implements eventlog.Engine.
func (e *Engine) Scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) error {
	s := e.store
	s.mu.Lock()
	// Stored events never change, so a copy of the slice's header is a snapshot.
	events := s.events[min(after, uint64(len(s.events))):]
	s.mu.Unlock()
	for _, ev := range events {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !fn(ev) {
			return nil
		}
	}
	return nil
}

// SaveCheckpoint implements eventlog.Engine.
func (e *Engine) SaveCheckpoint(_ context.Context, c eventlog.Checkpoint) error {
	s := e.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.epoch == 0 || e.epoch != s.epoch {
		return eventlog.ErrFenced
	}
	if c.Seq == 0 || c.Seq > uint64(len(s.events)) {
		return fmt.Errorf("checkpoint of event %d, which is not stored", c.Seq)
	}
	if c.Seq >= s.last.Seq {
		s.last = c
	}
	return nil
}

// LastCheckpoint implements eventlog.Engine.
func (e *Engine) LastCheckpoint(context.Context) (eventlog.Checkpoint, error) {
	e.store.mu.Lock()
	defer e.store.mu.Unlock()
	return e.store.last, nil
}

// Tamper calls fn with the stored events and stores what it returns, as somebody with access to a disk would.
func (s *Store) Tamper(fn func([]eventlog.Event) []eventlog.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = fn(slices.Clone(s.events))
}

// Close implements eventlog.Engine.
func (e *Engine) Close() error {
	e.store.mu.Lock()
	defer e.store.mu.Unlock()
	e.epoch = 0
	return nil
}
