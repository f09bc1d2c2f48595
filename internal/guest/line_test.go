package guest

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
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

// FuzzParseLine has no body read otherwise than package json reads it.
func FuzzParseLine(f *testing.F) {
	for _, l := range []Line{
		{Seq: 1, Time: 1700000000000000000, Stream: StreamStdout, Data: []byte("hello")},
		{Seq: math.MaxUint64, Time: math.MaxInt64, Stream: StreamStderr, Data: []byte{0, 0xff, '"'}, Partial: true},
		{Seq: 9, Stream: StreamStdout, Dropped: 3},
	} {
		f.Add(appendLine(nil, l)[lengthBytes+1:])
	}
	for _, body := range []string{
		`{"seq":01,"time_unix_ns":0,"stream":"stdout"}`,
		`{"seq":0,"time_unix_ns":0,"stream":"stdout"}`,
		`{"seq":1,"time_unix_ns":9223372036854775808,"stream":"stdout"}`,
		"{\"seq\":1,\"time_unix_ns\":0,\"stream\":\"stdout\",\"data\":\"YW\nJj\"}",
		`{"seq":1,"time_unix_ns":0,"stream":"stdout","data":""}`,
		`{"seq":1,"time_unix_ns":0,"stream":"stdout","data":"YWJj`,
		`{"seq":1,"time_unix_ns":,"stream":"stdout"}`,
		`{"seq":1,"time_unix_ns":0,"stream":"stdout"} `,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		room := []byte("before")
		got, data, ok := parseLine(body, room)
		if !ok {
			return
		}
		want, err := Decode(TypeLine, body)
		if err != nil {
			t.Fatalf("%q is no line: %v", body, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", body, got, want)
		}
		if string(data) != "before"+string(got.Data) {
			t.Errorf("%q: the room holds %q", body, data)
		}
	})
}

// TestParseLine makes sure that what this package writes is read without package json.
func TestParseLine(t *testing.T) {
	for _, l := range []Line{
		{Seq: 1, Time: 1, Stream: StreamStdout},
		{Seq: 2, Time: 2, Stream: StreamStderr, Data: bytes.Repeat([]byte("x"), MaxLine), Partial: true},
		{Seq: 3, Time: 3, Stream: StreamStdout, Dropped: 7},
	} {
		got, _, ok := parseLine(appendLine(nil, l)[lengthBytes+1:], nil)
		if !ok || !reflect.DeepEqual(got, l) {
			t.Errorf("got %+v, %t, want %+v", got, ok, l)
		}
	}
}

func BenchmarkDecodeLine(b *testing.B) {
	body := appendLine(nil, Line{Seq: 123456, Time: 1700000000000000000, Stream: StreamStdout, Data: bytes.Repeat([]byte("x"), 99)})[lengthBytes+1:]
	b.Run("parseLine", func(b *testing.B) {
		var room []byte
		for b.Loop() {
			_, data, ok := parseLine(body, room[:0])
			if !ok {
				b.Fatal("no line")
			}
			room = data
		}
	})
	b.Run("json", func(b *testing.B) {
		for b.Loop() {
			if _, err := Decode(TypeLine, body); err != nil {
				b.Fatal(err)
			}
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
