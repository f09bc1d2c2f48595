package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// Scan implements eventlog.Engine. While fn runs, the write-ahead log can't begin anew.
func (e *Engine) Scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) error {
	return scan(ctx, e.readers, after, fn)
}

func scan(ctx context.Context, db *sql.DB, after uint64, fn func(eventlog.Event) bool) (err error) {
	rows, err := db.QueryContext(ctx, `SELECT seq, stream, ver, type, tv, at, actor, idem, data, hash FROM event WHERE seq > ? ORDER BY seq`, int64(after))
	if err != nil {
		return fmt.Errorf("read events after %d: %w", after, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	last := after
	for rows.Next() {
		ev, err := scanEvent(rows)
		if err != nil {
			return fmt.Errorf("read the event after %d: %w", last, err)
		}
		last = ev.Seq
		if !fn(ev) {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read events after %d: %w", last, err)
	}
	return nil
}

func scanEvent(rows *sql.Rows) (ev eventlog.Event, err error) {
	var seq, version, typeVersion int64
	var idem sql.NullString
	var hash sql.RawBytes
	if err := rows.Scan(&seq, &ev.Stream, &version, &ev.Type, &typeVersion, &ev.Time, &ev.Actor, &idem, &ev.Payload, &hash); err != nil {
		return ev, err
	}
	// What the columns could hold and an event could not must not be cut to fit: it would be read as
	// something else than what is stored.
	if seq < 1 || version < 1 || typeVersion < 0 || typeVersion > 0xffff {
		return ev, fmt.Errorf("seq %d, ver %d or tv %d is out of range", seq, version, typeVersion)
	}
	if len(hash) != len(ev.Hash) {
		return ev, fmt.Errorf("event %d: hash of %d bytes", seq, len(hash))
	}
	if len(ev.Payload) > eventlog.MaxPayload {
		return ev, fmt.Errorf("event %d: payload of %d bytes, the most is %d", seq, len(ev.Payload), eventlog.MaxPayload)
	}
	if ev.Payload == nil {
		ev.Payload = []byte{}
	}
	ev.Seq, ev.Version, ev.TypeVersion, ev.IdempotencyKey = uint64(seq), uint64(version), uint16(typeVersion), idem.String
	copy(ev.Hash[:], hash)
	return ev, nil
}
