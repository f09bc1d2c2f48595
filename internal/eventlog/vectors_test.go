package eventlog_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

var update = flag.Bool("update", false, "rewrite the test vectors in the specification")

const (
	specPath   = "../../docs/specs/eventlog.md"
	vectorsTop = "<!-- vectors -->\n```json\n"
	vectorsEnd = "```\n<!-- /vectors -->"
)

// vectors is the JSON block of the specification. Integers that JSON readers may round are strings.
type vectors struct {
	LogID   string        `json:"log_id"`
	Genesis string        `json:"genesis"`
	Events  []eventVector `json:"events"`
}

type eventVector struct {
	Seq         string `json:"seq"`
	Stream      string `json:"stream"`
	Version     string `json:"ver"`
	Type        string `json:"type"`
	TypeVersion uint16 `json:"tv"`
	At          string `json:"at"`
	Actor       string `json:"actor"`
	Idem        string `json:"idem"`
	Data        string `json:"data"` // hexadecimal
	Input       string `json:"input"`
	Hash        string `json:"hash"`
}

// TestSpecVectors checks the package against the page from which other checkers are written.
func TestSpecVectors(t *testing.T) {
	spec, err := os.ReadFile(specPath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(spec), vectorsTop)
	block, after, ok2 := strings.Cut(rest, vectorsEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no block of vectors", specPath)
	}
	want := makeVectors()
	if *update {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(want); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(specPath, []byte(before+vectorsTop+b.String()+vectorsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	var got vectors
	if err := json.Unmarshal([]byte(block), &got); err != nil {
		t.Fatal(err)
	}
	if got.Genesis != want.Genesis || got.LogID != want.LogID {
		t.Errorf("genesis of %s: the page says %s, we compute %s", got.LogID, got.Genesis, want.Genesis)
	}
	if len(got.Events) != len(want.Events) {
		t.Fatalf("the page has %d events, the test %d", len(got.Events), len(want.Events))
	}
	for i := range got.Events {
		if got.Events[i] != want.Events[i] {
			t.Errorf("event %d: the page says\n%+v\nwe compute\n%+v", i+1, got.Events[i], want.Events[i])
		}
	}
}

// makeVectors computes the vectors: the bytes that are hashed by the words of the page, the hashes by the
// package.
func makeVectors() vectors {
	id := eventlog.LogID{0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f}
	events := []eventlog.Event{
		{Seq: 1, Stream: "app/web", Version: 1, Type: "release.created", TypeVersion: 1, Time: 1_700_000_000_000_000_000, Actor: "user:ada", IdempotencyKey: "k1", Payload: []byte(`{"app":"web"}`)},
		{Seq: 2, Stream: "app/wéb", Version: 1, Type: "t", TypeVersion: 65535, Time: 1_700_000_000_000_000_001},
		{Seq: 3, Stream: "app/web", Version: 2, Type: "t", TypeVersion: 0, Time: 9_007_199_254_740_993_000, Actor: "a", Payload: []byte{0x00, 0xff, 0x22}},
	}
	v := vectors{LogID: id.String(), Genesis: eventlog.Genesis(id).String()}
	prev := eventlog.Genesis(id)
	for i := range events {
		e := &events[i]
		e.Hash = eventlog.ChainHash(prev, e)
		v.Events = append(v.Events, eventVector{
			Seq: fmt.Sprint(e.Seq), Stream: e.Stream, Version: fmt.Sprint(e.Version), Type: e.Type, TypeVersion: e.TypeVersion,
			At: fmt.Sprint(e.Time), Actor: e.Actor, Idem: e.IdempotencyKey, Data: hex.EncodeToString(e.Payload),
			Input: hex.EncodeToString(hashInput(prev, e)), Hash: e.Hash.String(),
		})
		prev = e.Hash
	}
	return v
}

// hashInput is written from the page and shares nothing with the package.
func hashInput(prev eventlog.Hash, e *eventlog.Event) []byte {
	var b bytes.Buffer
	b.Write(prev[:])
	field := func(f []byte) {
		n := len(f)
		b.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		b.Write(f)
	}
	integer := func(v uint64) {
		var f [8]byte
		for i := range f {
			f[i] = byte(v >> (56 - 8*i))
		}
		field(f[:])
	}
	integer(e.Seq)
	field([]byte(e.Stream))
	integer(e.Version)
	field([]byte(e.Type))
	integer(uint64(e.TypeVersion))
	integer(uint64(e.Time))
	field([]byte(e.Actor))
	field([]byte(e.IdempotencyKey))
	field(e.Payload)
	return b.Bytes()
}
