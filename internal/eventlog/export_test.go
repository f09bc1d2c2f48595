package eventlog

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// makeExport writes an export of about size bytes, and gives its lines with their ends.
func makeExport(t *testing.T, size int) (export []byte, lines [][]byte) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	id := LogID{7}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	var events []Event
	head := Head{Hash: Genesis(id)}
	versions := map[string]uint64{}
	for total := 0; total < size-800; {
		stream := fmt.Sprintf("app/%c\"\\é", 'a'+rng.IntN(20))
		versions[stream]++
		e := Event{
			Seq: head.Seq + 1, Stream: stream, Version: versions[stream], Type: "thing.happened", TypeVersion: uint16(rng.IntN(3)),
			Time: 1_700_000_000_000_000_000 + int64(head.Seq)*1000, Actor: "user:ada", Payload: fmt.Appendf(nil, `{"n":%d}`, rng.Uint64()),
		}
		if rng.IntN(2) == 0 {
			e.IdempotencyKey = fmt.Sprint("key-", e.Seq)
		}
		e.Hash = ChainHash(head.Hash, &e)
		head = Head{Seq: e.Seq, Hash: e.Hash}
		events = append(events, e)
		total += len(appendEvent(nil, &e))
	}
	c := Checkpoint{Seq: head.Seq, Hash: head.Hash, Time: 1_700_000_001_000_000_000, StateVersion: 1, State: Hash{9}}
	c.Sign(id, key)
	var b bytes.Buffer
	err := Export(&b, id, c, func(yield func(Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), bytes.SplitAfter(b.Bytes(), []byte("\n"))
}

func wantDetected(t *testing.T, what string, export []byte) {
	t.Helper()
	if _, err := VerifyExport(t.Context(), bytes.NewReader(export), nil); err == nil {
		t.Errorf("%s: not detected", what)
	}
}

func TestExport(t *testing.T) {
	export, lines := makeExport(t, 20_000)
	n := uint64(0)
	got, err := VerifyExport(t.Context(), bytes.NewReader(export), func(e *Event) error {
		n++
		return nil
	})
	if err != nil || got.Log != (LogID{7}) || got.Checkpoint.Seq != n || int(n) != len(lines)-3 {
		t.Errorf("got %+v after %d events, %v", got, n, err)
	}
	for what, text := range map[string]string{
		"nothing": "", "no export": "hello\n", "another JSON": `{"a":1}` + "\n",
		"two ends":          string(export) + string(lines[len(lines)-2]),
		"white space":       strings.Replace(string(export), `"seq":1,`, `"seq": 1,`, 1),
		"other case":        strings.Replace(string(export), `"seq":1,`, `"Seq":1,`, 1),
		"an unknown field":  strings.Replace(string(export), `{"seq":1,`, `{"x":0,"seq":1,`, 1),
		"one field twice":   strings.Replace(string(export), `{"seq":1,`, `{"seq":9,"seq":1,`, 1),
		"an escaped letter": strings.Replace(string(export), `user:ada`, `user:\u0061da`, 1),
		"a longer line":     strings.Replace(string(export), `user:ada`, strings.Repeat("x", maxExportLine), 1),
		"no last line end":  strings.TrimSuffix(string(export), "\n"),
		"CRLF":              strings.ReplaceAll(string(export), "\n", "\r\n"),
	} {
		wantDetected(t, what, []byte(text))
	}
}

// TestTamperSample changes an export of 1 MiB here and there, and verifies all of it each time.
func TestTamperSample(t *testing.T) {
	export, lines := makeExport(t, 1<<20)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 10 {
		changed := bytes.Clone(export)
		bit := rng.IntN(8 * len(changed))
		changed[bit/8] ^= 1 << (bit % 8)
		wantDetected(t, fmt.Sprint("bit ", bit), changed)
		wantDetected(t, "cut", export[:rng.IntN(len(export))])
		i, j := 1+rng.IntN(len(lines)-3), 1+rng.IntN(len(lines)-3)
		if i != j {
			swapped := append([][]byte{}, lines...)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			wantDetected(t, fmt.Sprintf("lines %d and %d swapped", i, j), bytes.Join(swapped, nil))
		}
	}
}

// TestTamper flips every bit, cuts at every byte and swaps every pair of events. Verifying is line by line and
// what comes before a change is as it was, so it goes on from the state before the line that is changed: a
// change must show no later than at the end of that line, or of the export when it is a cut. What the first line
// says is held against later ones, so all of the export is verified for each change in it.
//
// It is done on 32 KiB; with PINNACE_TORTURE on 1 MiB, which are 8 million flips and some millions of swaps.
func TestTamper(t *testing.T) {
	size := 32 << 10
	if os.Getenv("PINNACE_TORTURE") != "" {
		size = 1 << 20
	} else if testing.Short() {
		size = 8 << 10
	}
	export, lines := makeExport(t, size)
	lines = lines[:len(lines)-1] // what SplitAfter leaves behind the last line end
	var v exportVerifier
	flips, cuts, swaps := 0, 0, 0
	for i, line := range lines {
		// Lines that are refused leave the state as it was, so one copy serves all changes.
		before := v
		try := func(line []byte) error {
			w := before
			_, err := w.line(line)
			return err
		}
		changed := bytes.Clone(line)
		for bit := range 8 * len(line) {
			changed[bit/8] ^= 1 << (bit % 8)
			text := changed
			if i+1 < len(lines) { // a line that has lost its end goes on in the next one
				text = append(slices.Clip(text), lines[i+1]...)
			}
			var err error
			if i == 0 {
				_, err = VerifyExport(t.Context(), bytes.NewReader(append(changed[:len(line):len(line)], export[len(line):]...)), nil)
			} else {
				err = tryLine(try, text)
			}
			if err == nil {
				t.Fatalf("line %d: bit %d is flipped, and nobody sees it", i+1, bit)
			}
			changed[bit/8] ^= 1 << (bit % 8)
			flips++
		}
		for n := range line {
			w := before
			if n == 0 {
				if _, err := w.finish(); err == nil {
					t.Fatalf("cut before line %d, and nobody sees it", i+1)
				}
			} else if _, err := readLine(newReader(line[:n])); err == nil {
				t.Fatalf("line %d: cut at byte %d, and nobody sees it", i+1, n)
			}
			cuts++
		}
		if i > 0 && i < len(lines)-1 {
			for j := i + 1; j < len(lines)-1; j++ {
				if try(lines[j]) == nil {
					t.Fatalf("lines %d and %d are swapped, and nobody sees it", i+1, j+1)
				}
				swaps++
			}
		}
		if _, err := v.line(line); err != nil {
			t.Fatalf("line %d as it is: %v", i+1, err)
		}
	}
	if _, err := v.finish(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bits flipped, %d cuts, %d pairs swapped", flips, cuts, swaps)
}

// tryLine reads one line as VerifyExport would, and gives it to try.
func tryLine(try func([]byte) error, text []byte) error {
	line, err := readLine(newReader(text))
	if err != nil {
		return err
	}
	return try(line)
}

func newReader(text []byte) *bufio.Reader { return bufio.NewReaderSize(bytes.NewReader(text), 16) }
