package eventlog

import (
	"testing"
)

// TestTailIsBounded: neither many events nor big ones, nor a change from one to the other, make the tail hold
// more than twice what it is for.
func TestTailIsBounded(t *testing.T) {
	var tl tail
	tl.init(Head{})
	seq := uint64(0)
	add := func(n, size int) {
		for range n {
			seq++
			tl.publish([]Event{{Seq: seq, Payload: make([]byte, size)}})
			if len(tl.events) > tailEvents || tl.dropped > max(len(tl.events), 1) {
				t.Fatalf("event %d: %d events and %d dropped ones are held", seq, len(tl.events), tl.dropped)
			}
			if tl.bytes > tailBytes || tl.waste > tailBytes {
				t.Fatalf("event %d: %d bytes and %d of dropped events are held", seq, tl.bytes, tl.waste)
			}
		}
	}
	add(3*tailEvents, 10)
	add(100, MaxPayload)
	add(2*tailEvents, 10)
	add(3, MaxPayload)
	if got := tl.head().Seq; got != seq {
		t.Errorf("head: got %d, want %d", got, seq)
	}
	for _, after := range []uint64{seq, seq - 1, seq - 3} {
		events, head, _ := tl.after(after)
		if uint64(len(events)) != seq-after || head != seq || (len(events) > 0 && events[0].Seq != after+1) {
			t.Errorf("after %d: got %d events of head %d", after, len(events), head)
		}
	}
	if events, _, _ := tl.after(0); events != nil {
		t.Error("gave events that are not the next ones")
	}
}
