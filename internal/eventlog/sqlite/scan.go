package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// Scan implements eventlog.Engine. While fn runs, the write-ahead log can't begin anew.
func (e *Engine) Scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) error {
	return scan(ctx, e.readers, after, fn)
}

const scanSQL = `SELECT seq, stream, ver, type, tv, at, actor, idem, data, hash FROM event WHERE seq > ? ORDER BY seq`

// scan asks the driver itself: database/sql would spend half of a start's time on conversions by reflection.
func scan(ctx context.Context, db *sql.DB, after uint64, fn func(eventlog.Event) bool) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("read events after %d: %w", after, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	last := after
	err = conn.Raw(func(c any) (err error) {
		// The driver would look at the context at every row and have a goroutine wait for it; now and then is enough.
		rows, err := c.(driver.QueryerContext).QueryContext(context.WithoutCancel(ctx), scanSQL, []driver.NamedValue{{Ordinal: 1, Value: int64(after)}})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		var values [columns]driver.Value
		for {
			if err := rows.Next(values[:]); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			ev, err := eventOf(&values)
			if err != nil {
				return err
			}
			if last = ev.Seq; !fn(ev) {
				return nil
			}
			if last%64 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read events after %d: %w", last, err)
	}
	return nil
}

// eventOf reads a row. The driver gives each row memory of its own.
func eventOf(row *[columns]driver.Value) (ev eventlog.Event, err error) {
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
	// An empty blob comes as nil.
	okIdem, okData = okIdem || row[7] == nil, okData || row[8] == nil
	if !okSeq || !okStream || !okVersion || !okType || !okTypeVersion || !okAt || !okActor || !okIdem || !okData || !okHash {
		return ev, fmt.Errorf("event %v: a column has another type", row[0])
	}
	return eventlog.StoredEvent(eventlog.Event{
		Stream: stream, Type: typ, Time: at, Actor: actor, IdempotencyKey: idem, Payload: data,
	}, seq, version, typeVersion, hash)
}
