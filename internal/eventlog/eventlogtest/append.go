package eventlogtest

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

func testRoundTrip(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	if h := l.Head(); h.Seq != 0 || h.Hash != l.Genesis() {
		t.Errorf("head of an empty log: got %v, want the genesis hash", h)
	}
	payload := []byte{0, 1, 0xff, '\n'}
	r := mustAppend(t, l,
		eventlog.Append{Stream: "app/wéb", Type: "a", TypeVersion: 65535, Actor: "ünï", IdempotencyKey: "k", Payload: payload},
		eventlog.Append{Stream: "b", Expect: eventlog.AnyVersion, Type: "b"},
		eventlog.Append{Stream: "app/wéb", Expect: 1, Type: "c", Payload: []byte{}},
	)
	payload[0] = 9 // the caller's buffer is the caller's
	if r.First != 1 || r.Last != 3 || r.Repeated || r.Hash != l.Head().Hash {
		t.Errorf("receipt: got %+v, want events 1 to 3 and the head's hash", r)
	}
	before := readAll(t, l)
	id := l.ID()
	l = reopen(t, l, s, eventlog.Options{})
	after := readAll(t, l)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("after opening again: got %+v, want %+v", after, before)
	}
	if l.ID() != id {
		t.Errorf("log id: got %s, want %s", l.ID(), id)
	}
	want := []eventlog.Event{
		{Seq: 1, Stream: "app/wéb", Version: 1, Type: "a", TypeVersion: 65535, Actor: "ünï", IdempotencyKey: "k", Payload: []byte{0, 1, 0xff, '\n'}},
		{Seq: 2, Stream: "b", Version: 1, Type: "b", IdempotencyKey: "k", Payload: []byte{}},
		{Seq: 3, Stream: "app/wéb", Version: 2, Type: "c", IdempotencyKey: "k", Payload: []byte{}},
	}
	for i := range after {
		want[i].Time, want[i].Hash = after[i].Time, after[i].Hash
	}
	if !reflect.DeepEqual(after, want) {
		t.Errorf("events: got %+v, want %+v", after, want)
	}
	mustAppend(t, l, event("b", 1))
	verify(t, l)
}

func testBounds(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	with := func(change func(*eventlog.Append)) []eventlog.Append {
		a := event("a", 0)
		change(&a)
		return []eventlog.Append{a}
	}
	long := strings.Repeat("x", eventlog.MaxName+1)
	many := make([]eventlog.Append, eventlog.MaxRequestEvents+1)
	for i := range many {
		many[i] = event("a", eventlog.AnyVersion)
	}
	heavy := make([]eventlog.Append, eventlog.MaxRequestBytes/eventlog.MaxPayload+1)
	for i := range heavy {
		heavy[i] = event("a", eventlog.AnyVersion)
		heavy[i].Payload = make([]byte, eventlog.MaxPayload)
	}
	otherKey := []eventlog.Append{event("a", 0), event("a", 1)}
	otherKey[1].IdempotencyKey = "second"
	for name, appends := range map[string][]eventlog.Append{
		"no events":     nil,
		"no stream":     with(func(a *eventlog.Append) { a.Stream = "" }),
		"no type":       with(func(a *eventlog.Append) { a.Type = "" }),
		"long stream":   with(func(a *eventlog.Append) { a.Stream = long }),
		"long type":     with(func(a *eventlog.Append) { a.Type = long }),
		"long actor":    with(func(a *eventlog.Append) { a.Actor = long }),
		"long key":      with(func(a *eventlog.Append) { a.IdempotencyKey = long }),
		"not UTF-8":     with(func(a *eventlog.Append) { a.Stream = "a\xff" }),
		"NUL":           with(func(a *eventlog.Append) { a.Actor = "a\x00b" }),
		"line end":      with(func(a *eventlog.Append) { a.Type = "a\nb" }),
		"big payload":   with(func(a *eventlog.Append) { a.Payload = make([]byte, eventlog.MaxPayload+1) }),
		"too many":      many,
		"too heavy":     heavy,
		"two keys":      otherKey,
		"second is bad": {event("a", 0), {}},
	} {
		if _, err := l.Append(t.Context(), appends...); err == nil {
			t.Errorf("%s: was appended", name)
		}
	}
	wantSeq(t, l, 0)
}

func testBigEvents(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	payload := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, eventlog.MaxPayload) }
	const n = 20 // more than one chunk, and more than the tail keeps
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			a := event(fmt.Sprint(i), 0)
			a.Payload = payload(i)
			if _, err := l.Append(t.Context(), a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l = reopen(t, l, s, eventlog.Options{})
	wantSeq(t, l, n)
	for e, err := range l.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		var i int
		if _, err := fmt.Sscan(e.Stream, &i); err != nil || !bytes.Equal(e.Payload, payload(i)) {
			t.Errorf("event %d of stream %q has another payload", e.Seq, e.Stream)
		}
	}
}

func testConflict(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	mustAppend(t, l, event("a", 0))
	for _, expect := range []uint64{0, 2, 1 << 40} {
		_, err := l.Append(t.Context(), event("a", expect))
		var conflict *eventlog.ConflictError
		if !errors.As(err, &conflict) || *conflict != (eventlog.ConflictError{Stream: "a", Want: expect, Have: 1}) {
			t.Errorf("expecting version %d: got %v, want a conflict with version 1", expect, err)
		}
	}
	l = reopen(t, l, s, eventlog.Options{})
	if _, err := l.Append(t.Context(), event("a", 0)); err == nil {
		t.Error("versions were forgotten by opening again")
	}
	mustAppend(t, l, event("a", 1))
	mustAppend(t, l, event("a", eventlog.AnyVersion))
	verify(t, l)
}

func testConflictInRequest(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	mustAppend(t, l, event("a", 0))
	appends := []eventlog.Append{event("a", 1), event("b", 0), event("a", 2), event("a", 2)}
	appends[0].IdempotencyKey = "key"
	if _, err := l.Append(t.Context(), appends...); err == nil {
		t.Fatal("a request with a conflict in it was appended")
	}
	wantSeq(t, l, 1)
	// Nothing of it may be left: neither versions nor the key.
	appends[3].Expect = 3
	if r := mustAppend(t, l, appends...); r.First != 2 || r.Last != 5 || r.Repeated {
		t.Errorf("receipt: got %+v, want events 2 to 5", r)
	}
	verify(t, l)
}

func testIdempotency(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	mustAppend(t, l, event("other", 0))
	first := []eventlog.Append{event("a", 0), event("b", 0)}
	first[0].IdempotencyKey = "ada/1"
	want := mustAppend(t, l, first...)
	want.Repeated = true
	mustAppend(t, l, event("other", 1))

	again := event("a", 77) // neither its version nor its content count
	again.IdempotencyKey = "ada/1"
	for _, when := range []string{"at once", "after opening again"} {
		if got := mustAppend(t, l, again); got != want {
			t.Errorf("%s: got %+v, want %+v", when, got, want)
		}
		wantSeq(t, l, 4)
		l = reopen(t, l, s, eventlog.Options{})
	}
	again.IdempotencyKey, again.Expect = "ada/2", 1
	if got := mustAppend(t, l, again); got.Repeated || got.First != 5 {
		t.Errorf("another key: got %+v, want event 5", got)
	}
}

func testIdempotencyConcurrent(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	const keys, callers = 10, 8
	receipts := make([]eventlog.Receipt, keys*callers)
	var wg sync.WaitGroup
	for i := range receipts {
		wg.Go(func() {
			a := event("a", eventlog.AnyVersion)
			a.IdempotencyKey = fmt.Sprint(i % keys)
			r, err := l.Append(t.Context(), a)
			if err != nil {
				t.Error(err)
			}
			receipts[i] = r
		})
	}
	wg.Wait()
	wantSeq(t, l, keys)
	firsts := 0
	for i, r := range receipts {
		if !r.Repeated {
			firsts++
		}
		if of := receipts[i%keys]; r.First != of.First || r.Hash != of.Hash {
			t.Errorf("caller %d got %+v, another with the same key %+v", i, r, of)
		}
	}
	if firsts != keys {
		t.Errorf("%d appends say that they were the first, want %d", firsts, keys)
	}
}

func testConcurrentWriters(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{Queue: 4}) // small, so that writers wait for room
	const writers, each, streams = 16, 50, 3
	var mu sync.Mutex
	owner := make(map[uint64]int)
	conflicts := 0
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			versions := [streams]uint64{}
			for i := 0; i < each; {
				stream := (w + i) % streams
				r, err := l.Append(t.Context(), event(fmt.Sprint(stream), versions[stream]))
				if conflict, ok := errors.AsType[*eventlog.ConflictError](err); ok {
					versions[stream] = conflict.Have
					mu.Lock()
					conflicts++
					mu.Unlock()
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if was, ok := owner[r.First]; ok {
					t.Errorf("event %d was given to writers %d and %d", r.First, was, w)
				}
				owner[r.First] = w
				mu.Unlock()
				versions[stream]++
				i++
			}
		})
	}
	wg.Wait()
	wantSeq(t, l, writers*each)
	if len(owner) != writers*each || conflicts == 0 {
		t.Errorf("%d receipts and %d conflicts, want %d and some", len(owner), conflicts, writers*each)
	}
	verify(t, l)
	verify(t, reopen(t, l, s, eventlog.Options{}))
}

// testFind: the first event of a request is found by its key, as soon as it was appended and for ever.
func testFind(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	mustAppend(t, l, event("other", 0))
	request := []eventlog.Append{event("a", 0), event("b", 0)}
	request[0].IdempotencyKey = "ada/1"
	want := mustAppend(t, l, request...)
	mustAppend(t, l, event("other", 1))
	for _, when := range []string{"at once", "after opening again"} {
		e, found, err := l.Find(t.Context(), "ada/1")
		if err != nil || !found || e.Seq != want.First || e.Stream != "a" {
			t.Errorf("%s: got event %d of %q, %v, %v, want event %d", when, e.Seq, e.Stream, found, err, want.First)
		}
		if e, found, err := l.Find(t.Context(), "ada/2"); err != nil || found {
			t.Errorf("%s: a key that nobody used: got event %d, %v", when, e.Seq, err)
		}
		wantSeq(t, l, 4)
		l = reopen(t, l, s, eventlog.Options{})
	}
}
