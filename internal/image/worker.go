package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/sandbox"
)

// errConfined means that the process that parses for the store failed, not the image: a fault of ours, too
// little memory on the host, or a kill from outside.
var errConfined = errors.New("confined process failed")

// patience is how long a confined process may do nothing that can be seen, with all that it needs given. A disk
// that stalls is waited for that long too.
const patience = 2 * time.Minute

// A worker is a confined process, which works for one Pull. It starts at once, so that it is there when the
// first bytes of a blob are, and ends when nobody holds it any more.
type worker struct {
	patience time.Duration
	bytes    int64 // what it may take
	file     int64 // what a file may get
	dir      string

	started chan struct{} // closed when it has started, or could not
	process *sandbox.Process
	conn    *net.UnixConn
	local   chan error // of a part that runs in this process, because none can be confined
	err     error      // why it did not start; after started

	mu      sync.Mutex
	holders int // guarded by mu
	nextID  int64
	jobs    map[int64]*job // guarded by mu
	gone    error          // why there will be no more replies; guarded by mu
	readers sync.WaitGroup
}

// A job is a work that the process does.
type job struct {
	name  string // of what it is about, for messages
	notes *notes // nil when there are none
	reply chan reply
}

// newWorker starts a worker for the caller, who must release it.
func (s *Store) newWorker() *worker {
	limits := s.limits
	w := &worker{
		patience: s.patience, dir: s.temp, started: make(chan struct{}), holders: 1, jobs: map[int64]*job{},
		file:  limits.LayerBytes + pieceSize,
		bytes: baseBytes + int64(s.workers)*(layerBytes+maxZstdWindow) + int64(limits.Entries)*entryBytes,
	}
	w.readers.Go(w.run)
	return w
}

// hold keeps the worker for one more holder, who calls what is returned.
func (w *worker) hold() (release func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holders++
	return w.release
}

// release ends the process when the last holder has gone, and waits until it has.
func (w *worker) release() error {
	w.mu.Lock()
	w.holders--
	last := w.holders == 0
	w.mu.Unlock()
	if !last {
		return nil
	}
	<-w.started
	var err error
	switch {
	case w.process != nil:
		err = w.process.Close()
	case w.conn != nil:
		err = errors.Join(w.conn.Close(), <-w.local)
	}
	w.readers.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// run starts the process and takes its replies until it ends.
func (w *worker) run() {
	w.err = w.start()
	close(w.started)
	if w.err != nil {
		return
	}
	buffer := make([]byte, maxReply)
	for {
		n, err := w.conn.Read(buffer)
		var r reply
		if err == nil && n > 0 {
			err = json.Unmarshal(buffer[:n], &r)
		}
		if err != nil || n == 0 {
			w.lose(err)
			return
		}
		w.mu.Lock()
		j := w.jobs[r.ID]
		delete(w.jobs, r.ID)
		w.mu.Unlock()
		if j != nil {
			j.reply <- r
		}
	}
}

func (w *worker) start() error {
	p, err := sandbox.Start(sandbox.Options{Part: ConfinedPart, Dir: w.dir, MaxFile: w.file, MaxBytes: w.bytes})
	if err == nil {
		w.process, w.conn = p, p.Conn
		return nil
	}
	if !errors.Is(err, sandbox.ErrUnavailable) {
		return err
	}
	// Only programs that do not call sandbox.Main come here: tests of other packages. What pinnace does is
	// checked in its own tests.
	ours, theirs, err := sandbox.Pair()
	if err != nil {
		return err
	}
	w.conn, w.local = ours, make(chan error, 1)
	go func() {
		err := serve(theirs, newBudget(func(int64) int64 { return 0 }))
		w.local <- errors.Join(err, theirs.Close())
	}()
	return nil
}

// lose tells all that there will be no more replies. What the process was doing then is in the error, since any
// of it may be to blame.
func (w *worker) lose(cause error) {
	if w.process != nil {
		// It ends because its connection has, or the other way round. Without one it is of no use.
		if cause = w.process.EndedWithin(time.Second); cause == nil {
			cause = net.ErrClosed
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var doing []string
	for _, j := range w.jobs {
		doing = append(doing, j.String())
	}
	w.gone = fmt.Errorf("%w while it read %s: %w", errConfined, strings.Join(doing, ", "), cause)
	for id, j := range w.jobs {
		delete(w.jobs, id)
		close(j.reply)
	}
}

func (j *job) String() string {
	if j.notes != nil {
		if entry := j.notes.lastEntry(); entry != "" {
			return j.name + " at or after the entry " + quote(entry)
		}
	}
	return j.name
}

// begin hands a work to the process.
func (w *worker) begin(ctx context.Context, name string, notes *notes, r *request, files ...*os.File) (*job, error) {
	select {
	case <-w.started:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if w.err != nil {
		return nil, w.err
	}
	j := &job{name: name, notes: notes, reply: make(chan reply, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone != nil {
		return nil, w.gone
	}
	w.nextID++
	r.ID = w.nextID
	w.jobs[r.ID] = j
	if err := send(w.conn, r, files...); err != nil {
		// run finds out why, and has it for those that wait.
		if w.process == nil {
			delete(w.jobs, r.ID)
			return nil, err
		}
	}
	return j, nil
}

// end waits for the reply, as long as the process moves. It does not end before, since the process uses what it was
// given; who wants it sooner takes away what the work reads.
func (w *worker) end(j *job) (reply, error) {
	timer := time.NewTicker(w.patience)
	defer timer.Stop()
	seen := int64(math.MinInt64)
	for {
		select {
		case r, ok := <-j.reply:
			if !ok {
				w.mu.Lock()
				defer w.mu.Unlock()
				return reply{}, w.gone
			}
			err := r.Fault.err()
			if errors.Is(err, errConfined) {
				err = fmt.Errorf("%s: %w", j, err)
			}
			return r, err
		case <-timer.C:
			var now int64
			if j.notes != nil {
				now = j.notes.progress.Load()
			}
			if now == seen || j.notes == nil {
				w.hung()
				continue
			}
			seen = now
		}
	}
}

// hung ends a process that does nothing.
func (w *worker) hung() {
	cause := fmt.Errorf("did nothing for %s", w.patience)
	if w.process != nil {
		w.process.Kill(cause)
	}
}
