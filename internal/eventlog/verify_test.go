package eventlog_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
)

// smallLog is a log with all fields in use, in a store that can be tampered with.
func smallLog(t *testing.T, n int) (*memory.Store, []eventlog.Event) {
	t.Helper()
	s := memory.NewStore(eventlog.LogID{1})
	l, err := eventlog.Open(t.Context(), s.Engine(), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		a := eventlog.Append{
			Stream: fmt.Sprint("app/", i%3), Expect: eventlog.AnyVersion, Type: "thing.happened", TypeVersion: 1,
			Actor: "user:ada", IdempotencyKey: fmt.Sprint("key-", i), Payload: fmt.Appendf(nil, `{"n":%d}`, i),
		}
		if _, err := l.Append(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	var events []eventlog.Event
	for e, err := range l.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return s, events
}

func each(events []eventlog.Event) iter.Seq2[eventlog.Event, error] {
	return func(yield func(eventlog.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// wantBad checks that a changed log is found out at the event bad, both by Verify and by Open.
func wantBad(t *testing.T, what string, s *memory.Store, changed []eventlog.Event, bad uint64) {
	t.Helper()
	head, err := eventlog.Verify(t.Context(), each(changed), eventlog.Genesis(eventlog.LogID{1}))
	ve, ok := errors.AsType[*eventlog.VerifyError](err)
	if !ok || ve.Seq != bad || head.Seq != bad-1 {
		t.Errorf("%s: verified up to %d with %v, want event %d to be found bad", what, head.Seq, err, bad)
	}
	s.Tamper(func([]eventlog.Event) []eventlog.Event { return changed })
	if l, err := eventlog.Open(t.Context(), s.Engine(), eventlog.Options{}); err == nil {
		t.Errorf("%s: the log was opened", what)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestVerify(t *testing.T) {
	_, events := smallLog(t, 10)
	genesis := eventlog.Genesis(eventlog.LogID{1})
	last := events[9]
	head, err := eventlog.Verify(t.Context(), each(events), genesis)
	if want := (eventlog.Head{Seq: 10, Hash: last.Hash}); err != nil || head != want {
		t.Errorf("got %v, %v, want %v", head, err, want)
	}
	if head, err := eventlog.Verify(t.Context(), each(nil), genesis); err != nil || head.Hash != genesis {
		t.Errorf("empty log: got %v, %v, want the genesis hash", head, err)
	}
	if _, err := eventlog.Verify(t.Context(), each(events), eventlog.Hash{}); err == nil {
		t.Error("verified with the genesis hash of another log")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := eventlog.Verify(cancelled, each(events), genesis); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	broken := errors.New("the disk is gone")
	_, err = eventlog.Verify(t.Context(), func(yield func(eventlog.Event, error) bool) {
		_ = yield(events[0], nil) && yield(eventlog.Event{}, broken)
	}, genesis)
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "after event 1") {
		t.Errorf("read error: got %v", err)
	}
}

// TestVerifyFindsEveryChange flips every bit of every field of every event.
func TestVerifyFindsEveryChange(t *testing.T) {
	s, events := smallLog(t, 12)
	for i := range events {
		typ := reflect.TypeFor[eventlog.Event]()
		for f := range typ.NumField() {
			for bit := range bits(&events[i], f) {
				changed := slices.Clone(events)
				flip(&changed[i], f, bit)
				wantBad(t, fmt.Sprintf("event %d, bit %d of %s", i+1, bit, typ.Field(f).Name), s, changed, uint64(i+1))
				if t.Failed() {
					return
				}
			}
		}
	}
}

func bits(e *eventlog.Event, field int) int {
	switch v := reflect.ValueOf(e).Elem().Field(field); v.Kind() {
	case reflect.String, reflect.Slice, reflect.Array:
		return v.Len() * 8
	default:
		return v.Type().Bits()
	}
}

func flip(e *eventlog.Event, field, bit int) {
	v := reflect.ValueOf(e).Elem().Field(field)
	switch v.Kind() {
	case reflect.String:
		b := []byte(v.String())
		b[bit/8] ^= 1 << (bit % 8)
		v.SetString(string(b))
	case reflect.Slice:
		b := slices.Clone(v.Bytes())
		b[bit/8] ^= 1 << (bit % 8)
		v.SetBytes(b)
	case reflect.Array:
		b := v.Index(bit / 8)
		b.SetUint(b.Uint() ^ 1<<(bit%8))
	case reflect.Int64:
		v.SetInt(v.Int() ^ 1<<bit)
	default:
		v.SetUint(v.Uint() ^ 1<<bit)
	}
}

func TestVerifyFindsEveryMove(t *testing.T) {
	s, events := smallLog(t, 12)
	for i := range events {
		if i < len(events)-1 { // a change after the end is none
			wantBad(t, fmt.Sprintf("without event %d", i+1), s, slices.Delete(slices.Clone(events), i, i+1), uint64(i+1))
			wantBad(t, fmt.Sprintf("event %d twice", i+1), s, slices.Insert(slices.Clone(events), i, events[i]), uint64(i+2))
		}
		for j := range i {
			changed := slices.Clone(events)
			changed[i], changed[j] = changed[j], changed[i]
			wantBad(t, fmt.Sprintf("events %d and %d swapped", j+1, i+1), s, changed, uint64(j+1))
			changed[i].Seq, changed[j].Seq = changed[j].Seq, changed[i].Seq
			wantBad(t, fmt.Sprintf("events %d and %d swapped but for their seqs", j+1, i+1), s, changed, uint64(j+1))
		}
	}
}

// TestVerifyDishonestWriter: the chain is right, but no honest writer would have written it.
func TestVerifyDishonestWriter(t *testing.T) {
	for what, change := range map[string]func(*eventlog.Event){
		"version skipped":     func(e *eventlog.Event) { e.Version++ },
		"version twice":       func(e *eventlog.Event) { e.Version-- },
		"time stands still":   func(e *eventlog.Event) { e.Time = 1 },
		"no stream":           func(e *eventlog.Event) { e.Stream, e.Version = "", 1 },
		"control characters":  func(e *eventlog.Event) { e.Actor = "a\nb" },
		"payload is too long": func(e *eventlog.Event) { e.Payload = make([]byte, eventlog.MaxPayload+1) },
	} {
		s, events := smallLog(t, 8)
		change(&events[4])
		for i := 4; i < len(events); i++ {
			events[i].Hash = eventlog.ChainHash(events[i-1].Hash, &events[i])
		}
		wantBad(t, what, s, events, 5)
	}
}

// TestCutIsFoundByHead: a log that was cut at its end is well by itself, and found out by whoever saw more.
func TestCutIsFoundByHead(t *testing.T) {
	s, events := smallLog(t, 8)
	seen := eventlog.Head{Seq: 8, Hash: events[7].Hash}
	s.Tamper(func(events []eventlog.Event) []eventlog.Event { return events[:5] })
	l, err := eventlog.Open(t.Context(), s.Engine(), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := "ends at event 5, but event 8 was seen before"
	if err := l.Extends(t.Context(), seen); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
