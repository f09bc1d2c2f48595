package guest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// vector is one frame of testdata/vectors.json: what another implementation has to read and write.
type vector struct {
	Name  string          `json:"name"`
	From  string          `json:"from"` // "host" or "guest"
	Type  Type            `json:"type"`
	Body  json.RawMessage `json:"body"`
	Frame string          `json:"frame"` // hex
}

func vectors(t testing.TB) []vector {
	t.Helper()
	src, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(src, &vs); err != nil {
		t.Fatal(err)
	}
	return vs
}

// TestVectors reads each frame, compares what it says with the body beside it, and writes the same bytes again.
func TestVectors(t *testing.T) {
	seen := map[Type]bool{}
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			frame, err := hex.DecodeString(v.Frame)
			if err != nil {
				t.Fatal(err)
			}
			limit := MaxGuestFrame
			if v.From == "host" {
				limit = MaxHostFrame
			}
			gotType, body, err := NewReader(bytes.NewReader(frame), limit).Next()
			if err != nil {
				t.Fatal(err)
			}
			if gotType != v.Type {
				t.Errorf("type %#x, want %#x", gotType, v.Type)
			}
			if want := compact(t, v.Body); string(body) != want {
				t.Errorf("body\n%s\nwant\n%s", body, want)
			}
			m, err := Decode(gotType, body)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Encode(nil, m)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again, frame) {
				t.Errorf("encoded again:\n%x\nwant\n%x", again, frame)
			}
			seen[gotType] = true
		})
	}
	for _, want := range []Type{
		TypeHello, TypeStarted, TypeFailed, TypeExit, TypeHeartbeat, TypeExecResult, TypeLine,
		TypeResumed, TypeConfig, TypeStop, TypeExec, TypeAckExit, TypeAttach, TypeAck, TypeResume, TypeBundle, TypeBundled, TypeFreeze, TypeFrozen,
		TypeCommandStarted, TypeCommandOutput, TypeInputCredit, TypeCommandEnded, TypeRunCommand, TypeCommandInput, TypeCommandResize,
		TypeCommandSignal, TypeCommandCredit, TypeEndCommand,
		TypeStats, TypeClock, TypeTime, TypeAskStats,
	} {
		if !seen[want] {
			t.Errorf("no vector for type %#x", want)
		}
	}
}

func compact(t *testing.T, src []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, src); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestReader(t *testing.T) {
	for _, tc := range []struct {
		name, stream string // hex
		want         error
	}{
		{"nothing", "", io.EOF},
		{"half a length", "0000", io.ErrUnexpectedEOF},
		{"no body", "00000005", io.ErrUnexpectedEOF},
		{"half a body", "0000000305", io.ErrUnexpectedEOF},
		{"without a type", "00000000", ErrFrame},
		{"too long", "00010001" + "05", ErrFrame},
		{"far too long", "ffffffff" + "05", ErrFrame},
	} {
		stream, err := hex.DecodeString(tc.stream)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := NewReader(bytes.NewReader(stream), MaxGuestFrame).Next(); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

// TestRestart cuts a stream anywhere within a frame, and expects the frame of the next session right behind its mark.
func TestRestart(t *testing.T) {
	cut, err := Encode(nil, Config{Hostname: strings.Repeat("x", 70000), Nonce: "\u00ff"})
	if err != nil {
		t.Fatal(err)
	}
	next, err := Encode(AppendRestart(nil), Attach{Version: Version, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(cut) {
		if n > 100 && n%997 != 0 {
			continue
		}
		// The stream has no end: a reader that waits for the rest of what was cut waits for ever.
		stream := io.MultiReader(bytes.NewReader(cut[:n]), bytes.NewReader(next), iotest.ErrReader(errors.New("waits for more")))
		kind, body, err := NewRestartableReader(stream, MaxHostFrame).Next()
		if err != nil || kind != TypeAttach {
			t.Fatalf("cut after %d bytes: got %#x %q, %v", n, kind, body, err)
		}
	}
}

func TestEncodeRefusesLongFrames(t *testing.T) {
	if _, err := Encode(nil, Failed{Error: strings.Repeat("x", MaxGuestFrame)}); err == nil {
		t.Error("a long frame from the guest was encoded")
	}
	c := Config{Hostname: strings.Repeat("x", MaxGuestFrame)}
	if _, err := Encode(nil, c); err != nil {
		t.Errorf("a long frame from the host: %v", err)
	}
	longest := Line{Seq: 1<<64 - 1, Time: -1 << 63, Stream: StreamStdout, Data: bytes.Repeat([]byte{0xff}, MaxLine), Partial: true, Dropped: 1<<64 - 1}
	if _, err := Encode(nil, longest); err != nil {
		t.Errorf("the longest line: %v", err)
	}
}

func TestDecodeBounds(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		t          Type
	}{
		{"no JSON", `{`, TypeHeartbeat},
		{"another JSON type", `[]`, TypeHello},
		{"a number that is none", `{"ms":"x"}`, TypeHeartbeat},
		{"short nonce", `{"version":1,"nonce":"00"}`, TypeHello},
		{"nonce with other digits", `{"version":1,"nonce":"0000000000000000000000000000000G"}`, TypeHello},
		{"many marks", `{"pid":1,"marks":[` + strings.Repeat(`{},`, maxMarks) + `{}]}`, TypeStarted},
		{"no process", `{"pid":0}`, TypeStarted},
		{"status that wraps to 0", `{"code":256}`, TypeExit},
		{"negative status", `{"code":-1}`, TypeExit},
		{"status of a failure", `{"code":1000}`, TypeFailed},
		{"line without a number", `{"stream":"stdout"}`, TypeLine},
		{"line of no stream", `{"seq":1,"stream":"kernel"}`, TypeLine},
		{"long line", `{"seq":1,"stream":"stdout","data":"` + strings.Repeat("AAAA", MaxLine/3+1) + `"}`, TypeLine},
		{"long output", `{"id":1,"output":"` + strings.Repeat("AAAA", MaxExecOutput/3+1) + `"}`, TypeExecResult},
	} {
		if m, err := Decode(tc.t, []byte(tc.body)); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: got %+v, %v", tc.name, m, err)
		}
	}
	if _, err := Decode(0x3f, []byte("anything")); !errors.Is(err, ErrUnknownType) {
		t.Errorf("an unknown type: %v", err)
	}
	if m, err := Decode(TypeHeartbeat, []byte(`{"ms":7,"of a later version":{}}`)); err != nil || m != (Heartbeat{MS: 7}) {
		t.Errorf("an unknown field: %v, %v", m, err)
	}
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain ä €":            "plain ä €",
		"two\nlines\tof":       "two lines of",
		"\x1b[31mred\x1b[0m":   " [31mred [0m",
		"\u202eright to left":  " right to left",
		"bad \xff\xfe bytes":   "bad ? bytes",
		strings.Repeat("x", 9): "xxxxxxxx",
		"1234567ä":             "1234567?",
	} {
		limit := 8
		if len(in) > 9 {
			limit = 100
		}
		if got := text(in, limit); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// FuzzDecode feeds a stream to the reader: it must not panic, and what it takes must survive a round trip.
func FuzzDecode(f *testing.F) {
	for _, v := range vectors(f) {
		frame, err := hex.DecodeString(v.Frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := NewRestartableReader(bytes.NewReader(stream), MaxGuestFrame)
		for {
			kind, body, err := r.Next()
			if err != nil {
				return
			}
			m, err := Decode(kind, body)
			if err != nil {
				continue
			}
			frame, err := Encode(nil, m)
			if err != nil {
				continue // escaping can make a text longer than it came
			}
			again, err := Decode(m.frameType(), frame[lengthBytes+1:])
			if err != nil {
				t.Fatalf("%+v: %v", m, err)
			}
			if !reflect.DeepEqual(again, m) {
				second, err := Encode(nil, again)
				if err != nil || !bytes.Equal(second, frame) {
					t.Fatalf("got %+v, want %+v", again, m)
				}
			}
		}
	})
}
