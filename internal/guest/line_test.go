package guest

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"
)

// FuzzAppendLine has every line written as package json writes it.
func FuzzAppendLine(f *testing.F) {
	f.Add(uint64(1), int64(1700000000000000000), true, []byte("hello"), false, uint64(0))
	f.Add(uint64(math.MaxUint64), int64(math.MinInt64), false, []byte{0, 0xff, '"', '<'}, true, uint64(math.MaxUint64))
	f.Add(uint64(0), int64(-1), false, []byte(nil), false, uint64(3))
	f.Add(uint64(7), int64(0), true, bytes.Repeat([]byte{0xfe}, MaxLine), true, uint64(0))
	f.Fuzz(func(t *testing.T, seq uint64, at int64, out bool, data []byte, partial bool, dropped uint64) {
		l := Line{Seq: seq, Time: at, Stream: StreamStderr, Data: data, Partial: partial, Dropped: dropped}
		if out {
			l.Stream = StreamStdout
		}
		if !l.plain() {
			t.Skip("too long")
		}
		body, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		want := appendFrame([]byte("before"), TypeLine, body)
		if got := appendLine([]byte("before"), l); !bytes.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func BenchmarkEncodeLine(b *testing.B) {
	l := Line{Seq: 123456, Time: 1700000000000000000, Stream: StreamStdout, Data: bytes.Repeat([]byte("x"), 99)}
	var frame []byte
	for b.Loop() {
		var err error
		if frame, err = Encode(frame[:0], l); err != nil {
			b.Fatal(err)
		}
	}
}
