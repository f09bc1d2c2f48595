// Package eventlog is the one durable record of what was decided: an append-only, gapless, hash-chained
// sequence of events with one writer.
//
// A Log orders appends, checks the versions that callers expected, chains the hashes and commits many
// appends in one transaction of its Engine; an Engine (SQLite, memory) only stores and reads back. State is
// not kept here: it is folded from the events by whoever opens the log. An event's type and payload mean
// nothing to this package.
//
// The bytes that are hashed and how they are stored are written down in docs/specs/eventlog.md.
package eventlog

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of one request. They are checked before anything is queued.
const (
	// MaxPayload is the largest payload of one event, in bytes.
	MaxPayload = 1 << 20
	// MaxName is the largest stream, type, actor or idempotency key, in bytes.
	MaxName = 512
	// MaxRequestEvents is how many events one Append may carry.
	MaxRequestEvents = 1024
	// MaxRequestBytes is how many bytes of payload one Append may carry.
	MaxRequestBytes = 8 << 20
)

// AnyVersion as an Append's Expect means that the stream's version is not checked.
const AnyVersion uint64 = math.MaxUint64

// A Hash is the SHA-256 that chains an event to all events before it.
type Hash [32]byte

// String is the hash in lower-case hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes what MarshalText gives and nothing else.
func (h *Hash) UnmarshalText(text []byte) error { return decodeHex(h[:], text) }

// decodeHex fills dst from lower-case hexadecimal of exactly its length.
func decodeHex(dst, text []byte) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("%d hexadecimal digits where %d belong", len(text), 2*len(dst))
	}
	if strings.ContainsAny(string(text), "ABCDEF") {
		return errors.New("hexadecimal digits are lower-case")
	}
	_, err := hex.Decode(dst, text)
	return err
}

// A LogID tells one log from every other; it is drawn when the log is created and never changes.
type LogID [16]byte

// String is the ID in lower-case hexadecimal.
func (id LogID) String() string { return hex.EncodeToString(id[:]) }

// NewID draws the ID of a new log.
func NewID() (id LogID) {
	// Reading random bytes never fails: the runtime ends the process instead.
	_, _ = rand.Read(id[:])
	return id
}

// MarshalText implements encoding.TextMarshaler.
func (id LogID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *LogID) UnmarshalText(text []byte) error { return decodeHex(id[:], text) }

// An Event is one committed fact. Events are shared between readers: nobody may change one, nor its Payload.
type Event struct {
	Seq            uint64 // 1, 2, 3, … without a gap
	Stream         string // what the event is about, for example "app/web"
	Version        uint64 // position in the stream: 1, 2, 3, …
	Type           string
	TypeVersion    uint16
	Time           int64 // Unix nanoseconds; strictly increasing along the log, and never used to order anything
	Actor          string
	IdempotencyKey string // shared by all events of one request; empty when it had none
	Payload        []byte
	Hash           Hash
}

// An Append asks for one event. What the log assigns (seq, version, time, hash) is not in it.
type Append struct {
	Stream         string
	Expect         uint64 // the stream's version before this event; 0 for a new stream, or AnyVersion
	Type           string
	TypeVersion    uint16
	Actor          string
	IdempotencyKey string
	Payload        []byte
}

// A Receipt says where in the log a request's events are.
type Receipt struct {
	First, Last uint64
	Hash        Hash // of the event Last
	// Repeated is set when the idempotency key was known: nothing was appended this time, and the other
	// fields are those of the first time.
	Repeated bool
}

// A Head is the last event of a log, or the zero Seq with the genesis hash when it has none.
type Head struct {
	Seq  uint64
	Hash Hash
}

// Errors that callers branch on.
var (
	// ErrClosed means that the log was closed; nothing was appended.
	ErrClosed = errors.New("the event log is closed")
	// ErrNotCommitted means that the engine refused the transaction and that nothing of it is stored, for
	// example because the disk is full. The same append may be tried again.
	ErrNotCommitted = errors.New("nothing was committed")
	// ErrUnknown means that the caller stopped waiting while its request was being committed. Trying again
	// with the same idempotency key tells what became of it.
	ErrUnknown = errors.New("it is not known whether the append was committed")
	// ErrFailed means that the log stopped for good: it cannot tell what is on the disk, or another writer
	// took over. The process is to end and start again from what is stored.
	ErrFailed = errors.New("the event log has failed and takes no more appends")
	// ErrFenced means that another writer owns the store now.
	ErrFenced = errors.New("another writer has taken over the event log")
	// ErrHeld means that somebody else owns the store and may be alive.
	ErrHeld = errors.New("another writer has the event log")
	// ErrFollowing means that this log only follows the one that appends.
	ErrFollowing = errors.New("this server follows another one, which appends to the event log")
	// ErrBroken means that the storage failed in a way after which nothing that it says can be trusted
	// until the process has started again: a failed sync, above all.
	ErrBroken = errors.New("the event log's storage is broken")
)

// A ConflictError means that a stream is not at the version that the caller expected. Nothing of its
// request was appended.
type ConflictError struct {
	Stream string
	Want   uint64 // what the caller expected
	Have   uint64 // what the stream is at
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("stream %q is at version %d, not %d: somebody else changed it", e.Stream, e.Have, e.Want)
}

// A RejectedError means that Options.Validate refused a request. Nothing of it was appended.
type RejectedError struct{ Cause error }

func (e *RejectedError) Error() string { return "event refused: " + e.Cause.Error() }

// Unwrap gives the hook's own error.
func (e *RejectedError) Unwrap() error { return e.Cause }

// A RegressionError means that a log does not contain a head that was seen before: it was restored from
// an older copy, has lost events, or is another log.
type RegressionError struct {
	Seen Head
	Have Head // the log's event at Seen.Seq, or its head when it is shorter
}

func (e *RegressionError) Error() string {
	if e.Have.Seq < e.Seen.Seq {
		return fmt.Sprintf("the event log ends at event %d, but event %d was seen before: it was restored from an older copy or has lost events", e.Have.Seq, e.Seen.Seq)
	}
	return fmt.Sprintf("event %d has the hash %s, but %s was seen before: this is another history", e.Seen.Seq, e.Have.Hash, e.Seen.Hash)
}

// checkRequest refuses a request that could never be stored.
func checkRequest(appends []Append) error {
	if len(appends) == 0 {
		return errors.New("append: no events")
	}
	if len(appends) > MaxRequestEvents {
		return fmt.Errorf("append: %d events in one request, the most is %d", len(appends), MaxRequestEvents)
	}
	total := 0
	for i := range appends {
		a := &appends[i]
		if err := checkFields(a.Stream, a.Type, a.Actor, a.IdempotencyKey, a.Payload); err != nil {
			return fmt.Errorf("append event %d of %d: %w", i+1, len(appends), err)
		}
		if a.IdempotencyKey != "" && a.IdempotencyKey != appends[0].IdempotencyKey {
			return fmt.Errorf("append event %d of %d: idempotency key %q differs from the request's %q", i+1, len(appends), a.IdempotencyKey, appends[0].IdempotencyKey)
		}
		total += len(a.Payload)
	}
	if total > MaxRequestBytes {
		return fmt.Errorf("append: %d bytes of payload in one request, the most is %d", total, MaxRequestBytes)
	}
	return nil
}

// checkFields says what is wrong with the fields of an event that come from its caller.
func checkFields(stream, typ, actor, key string, payload []byte) error {
	if stream == "" || typ == "" {
		return errors.New("stream and type must not be empty")
	}
	for _, f := range [...]struct{ name, value string }{
		{"stream", stream}, {"type", typ}, {"actor", actor}, {"idempotency key", key},
	} {
		if len(f.value) > MaxName {
			return fmt.Errorf("%s of %d bytes, the most is %d", f.name, len(f.value), MaxName)
		}
		// Control characters would make exports and error messages ambiguous, and SQL tools cut at NUL.
		if !printable(f.value) && (!utf8.ValidString(f.value) || strings.ContainsFunc(f.value, unicode.IsControl)) {
			return fmt.Errorf("%s %q is not UTF-8 without control characters", f.name, f.value)
		}
	}
	if len(payload) > MaxPayload {
		return fmt.Errorf("payload of %d bytes, the most is %d", len(payload), MaxPayload)
	}
	return nil
}

// printable is true for ASCII without control characters, which nearly all names are: a start checks millions.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
