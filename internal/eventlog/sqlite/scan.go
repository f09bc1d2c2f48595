package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"modernc.org/sqlite"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// Scan implements eventlog.Engine. While fn runs, nothing of the file is held.
func (e *Engine) Scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) error {
	return scan(ctx, e.readers, after, fn)
}

// batches are how many events are read at once: few at first, because many scans are for one event, and then as many as
// callers ask for in one scan. A batch ends early when it has batchBytes of payload.
var batches = [...]int{8, 56, 960, 1024}

const batchBytes = 4 << 20

func scan(ctx context.Context, db *sql.DB, after uint64, fn func(eventlog.Event) bool) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("read events after %d: %w", after, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	b := batch{last: after}
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read events after %d: %w", after, err)
		}
		b.events, b.bytes, b.most = b.events[:0], 0, batches[min(n, len(batches)-1)]
		if err := b.read(ctx, conn); err != nil {
			return fmt.Errorf("read events after %d: %w", b.last, err)
		}
		for i := range b.events {
			if !fn(b.events[i]) {
				return nil
			}
		}
		if !b.full() {
			return nil
		}
	}
}

// Asking for rows takes a lock of the connection for each column and its type, which is a third of what a start costs. An
// aggregate function of ours is given all columns of a row at once. It is called with the number of the batch that the rows
// are for; what it returns means nothing.
const (
	scanFunction = "pinnace_scan"
	scanSQL      = `SELECT ` + scanFunction + `(?, seq, stream, ver, type, tv, at, actor, idem, data, hash) FROM event WHERE seq > ?`
)

// register makes the function known to connections that are opened from then on.
var register = sync.OnceValue(func() error {
	return sqlite.RegisterFunction(scanFunction, &sqlite.FunctionImpl{
		NArgs:         1 + columns,
		MakeAggregate: func(sqlite.FunctionContext) (sqlite.AggregateFunction, error) { return &scanner{}, nil },
		VolatileArgs:  true,
	})
})

// running are the batches that are being read, by number.
var (
	running sync.Map
	numbers atomic.Int64
)

// A batch is what one query reads.
type batch struct {
	last   uint64 // the seq of the last event that was read
	most   int
	events []eventlog.Event
	bytes  int
}

// errFull ends the query of a batch that has enough.
var errFull = errors.New("the batch is full")

func (b *batch) full() bool { return len(b.events) >= b.most || b.bytes >= batchBytes }

func (b *batch) read(ctx context.Context, conn *sql.Conn) error {
	number := numbers.Add(1)
	running.Store(number, b)
	defer running.Delete(number)
	return conn.Raw(func(c any) error {
		// The driver would have a goroutine wait for the context, and a batch is short.
		rows, err := c.(driver.QueryerContext).QueryContext(context.WithoutCancel(ctx), scanSQL,
			[]driver.NamedValue{{Ordinal: 1, Value: number}, {Ordinal: 2, Value: int64(b.last)}})
		if err != nil {
			// What a function returns comes back as text.
			if b.full() && strings.Contains(err.Error(), errFull.Error()) {
				return nil
			}
			return err
		}
		return rows.Close()
	})
}

// add reads a row, whose texts and blobs are SQLite's and good until it returns.
func (b *batch) add(row []driver.Value) error {
	seq, okSeq := row[0].(int64)
	stream, okStream := row[1].(string)
	version, okVersion := row[2].(int64)
	typ, okType := row[3].(string)
	typeVersion, okTypeVersion := row[4].(int64)
	at, okAt := row[5].(int64)
	actor, okActor := row[6].(string)
	idem, okIdem := row[7].(string)
	data, okData := row[8].([]byte)
	hash, okHash := row[9].([]byte)
	okIdem = okIdem || row[7] == nil
	if !okSeq || !okStream || !okVersion || !okType || !okTypeVersion || !okAt || !okActor || !okIdem || !okData || !okHash {
		return fmt.Errorf("event %v: a column has another type", row[0])
	}
	if seq <= int64(b.last) {
		return fmt.Errorf("event %d comes after event %d", seq, b.last)
	}
	var before eventlog.Event
	if n := len(b.events); n > 0 {
		before = b.events[n-1]
	}
	ev, err := eventlog.StoredEvent(eventlog.Event{
		Stream: strings.Clone(stream), Type: cloneUnless(typ, before.Type), Time: at, Actor: cloneUnless(actor, before.Actor),
		IdempotencyKey: strings.Clone(idem), Payload: bytes.Clone(data),
	}, seq, version, typeVersion, hash)
	if err != nil {
		return err
	}
	b.events, b.last, b.bytes = append(b.events, ev), ev.Seq, b.bytes+len(data)
	if b.full() {
		return errFull
	}
	return nil
}

// cloneUnless copies a text unless it is the one before, as types and actors often are.
func cloneUnless(text, before string) string {
	if text == before {
		return before
	}
	return strings.Clone(text)
}

// A scanner gives the rows of one query to its batch.
type scanner struct{ batch *batch }

var _ sqlite.AggregateFunction = (*scanner)(nil)

// Step implements sqlite.AggregateFunction.
func (s *scanner) Step(_ *sqlite.FunctionContext, row []driver.Value) error {
	if s.batch == nil {
		found, ok := running.Load(row[0])
		if !ok {
			return fmt.Errorf("no batch %v is being read", row[0])
		}
		s.batch = found.(*batch)
	}
	return s.batch.add(row[1:])
}

// WindowInverse implements sqlite.AggregateFunction.
func (s *scanner) WindowInverse(*sqlite.FunctionContext, []driver.Value) error {
	return errors.New(scanFunction + " is for no window")
}

// WindowValue implements sqlite.AggregateFunction.
func (s *scanner) WindowValue(*sqlite.FunctionContext) (driver.Value, error) { return nil, nil }

// Final implements sqlite.AggregateFunction.
func (s *scanner) Final(*sqlite.FunctionContext) {}
