package eventlogtest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// Key is what the suite's logs are signed with.
var Key = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// A Client writes down what it asks of a log and what it is told, for test/logcheck: before a call and after it.
// A call without an end is one whose caller was killed. docs/specs/eventlog.md describes the lines.
type Client struct {
	name string
	mu   sync.Mutex
	file *os.File // every line is one write, which outlives the process
}

// NewClient makes a client whose history is in dir.
func NewClient(dir, name string) (*Client, error) {
	f, err := os.OpenFile(filepath.Join(dir, name+".history"), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &Client{name: name, file: f}, nil
}

func (c *Client) note(line any) error {
	b, err := json.Marshal(line)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.file.Write(append(b, '\n'))
	return err
}

// Close ends the history.
func (c *Client) Close() error { return c.file.Close() }

// Append is Log.Append with a history. The idempotency key of the first Append must be set.
func (c *Client) Append(ctx context.Context, l *eventlog.Log, appends ...eventlog.Append) (eventlog.Receipt, error) {
	key := appends[0].IdempotencyKey
	if err := c.note(map[string]any{"call": key, "events": len(appends)}); err != nil {
		return eventlog.Receipt{}, err
	}
	r, err := l.Append(ctx, appends...)
	end := map[string]any{"end": key}
	switch {
	case err == nil:
		end["result"], end["first"], end["last"], end["hash"] = "ok", r.First, r.Last, r.Hash.String()
	case errors.Is(err, eventlog.ErrUnknown), errors.Is(err, eventlog.ErrFailed):
		end["result"] = "unknown"
	default:
		end["result"] = "refused"
	}
	return r, errors.Join(err, c.note(end))
}

// Saw notes an event that was read.
func (c *Client) Saw(e *eventlog.Event) error {
	return c.note(map[string]any{"saw": e.Seq, "hash": e.Hash.String()})
}

// counts is a fold: how many events each stream has.
type counts struct {
	mu      sync.Mutex
	seq     uint64
	streams map[string]uint64
}

func (c *counts) apply(events []eventlog.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range events {
		c.seq = events[i].Seq
		c.streams[events[i].Stream]++
	}
}

func (c *counts) Version() uint32 { return 1 }

func (c *counts) Freeze() (uint64, eventlog.Frozen) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seq, frozenCounts{c.seq, maps.Clone(c.streams)}
}

func (c *counts) Restore(data []byte) error {
	var f frozenCounts
	if err := json.Unmarshal(data, &f); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq, c.streams = f.Seq, f.Streams
	return nil
}

type frozenCounts struct {
	Seq     uint64
	Streams map[string]uint64
}

func (f frozenCounts) Encode() ([]byte, error) { return json.Marshal(f) }

func (f frozenCounts) Hash() (h eventlog.Hash) {
	sum := sha256.New()
	_ = binary.Write(sum, binary.BigEndian, f.Seq) // a hash never fails to write
	for _, s := range slices.Sorted(maps.Keys(f.Streams)) {
		fmt.Fprintf(sum, "%s %d\n", s, f.Streams[s])
	}
	return eventlog.Hash(sum.Sum(nil))
}

// Options are those of a log with all that can go wrong: a fold, checkpoints and a derived copy in dir.
func Options(dir string) eventlog.Options {
	c := &counts{streams: map[string]uint64{}}
	return eventlog.Options{
		Replay:   func(events []eventlog.Event) error { c.apply(events); return nil },
		OnCommit: c.apply,
		Fold:     c, Key: Key, Dir: filepath.Join(dir, "derived"), CheckpointEvery: 50, Poll: 5 * time.Millisecond,
	}
}

// Write is the process that campaigns kill: it opens the log, as soon as it may, appends from several goroutines
// with a history in dir, reads what comes, and closes the log in order when it has made all requests.
func Write(ctx context.Context, e eventlog.Engine, dir string, requests int) error {
	opts := Options(dir)
	opts.Follow = true // a killed process leaves a lease behind, which has to run out
	l, err := eventlog.Open(ctx, e, opts)
	if err != nil {
		return err
	}
	select {
	case <-l.Leads():
	case <-l.Failed():
		return l.Err()
	}
	const writers = 8
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for w := range writers {
		wg.Go(func() { errs <- write(ctx, l, dir, w, requests/writers) })
	}
	wg.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	return errors.Join(err, l.Close())
}

func write(ctx context.Context, l *eventlog.Log, dir string, w, requests int) error {
	rng := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(w))) //nolint:gosec // What is appended is no secret.
	c, err := NewClient(dir, fmt.Sprintf("%d-%d-%d", time.Now().UnixNano(), os.Getpid(), w))
	if err != nil {
		return err
	}
	for i := range requests {
		appends := make([]eventlog.Append, 1+rng.IntN(3))
		for j := range appends {
			appends[j] = eventlog.Append{Stream: fmt.Sprint("s/", rng.IntN(20)), Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, rng.IntN(20_000))}
		}
		appends[0].IdempotencyKey = fmt.Sprintf("%s/%d", c.name, i)
		r, err := c.Append(ctx, l, appends...)
		if err != nil {
			return err
		}
		if rng.IntN(8) > 0 {
			continue
		}
		// A caller that did not hear the answer asks again.
		again, err := c.Append(ctx, l, appends...)
		if err != nil || !again.Repeated || again.First != r.First || again.Hash != r.Hash {
			return fmt.Errorf("asked again: got %+v, %w, and before %+v", again, err, r)
		}
		for events, err := range l.Watch(ctx, r.First-1) {
			if err == nil {
				err = c.Saw(&events[0])
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return c.Close()
}
