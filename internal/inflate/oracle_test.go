package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	kpgzip "github.com/klauspost/compress/gzip"
)

// contentLimit is how much of a stream the tests that compare decoders look at.
const contentLimit = 4 << 20

// way is a way to use a Reader.
type way struct {
	name   string
	source func(io.Reader) io.Reader
	full   int // instead of what Reset sets
	write  bool
}

// The first one is what the others are compared with.
var ways = []way{
	{name: "whole"},
	{name: "WriteTo", write: true},
	{name: "a byte at a time", source: iotest.OneByteReader}, // never enough for the fast loop
	{name: "data with EOF", source: iotest.DataErrReader, write: true},
	{name: "halves", source: iotest.HalfReader, full: window + 700},
	{name: "random", source: randomReader, full: window + 5000, write: true},
	{name: "little room", full: window + 1, write: true}, // hardly ever enough for the fast loop
}

// decoded is what a Reader makes of a stream.
func (w way) decoded(r *Reader, stream []byte) ([]byte, error) {
	src := io.Reader(bytes.NewReader(stream))
	if w.source != nil {
		src = w.source(src)
	}
	r.Reset(src)
	if w.full > 0 {
		r.full = w.full
	}
	if !w.write {
		return io.ReadAll(io.LimitReader(r, contentLimit+1))
	}
	var out bytes.Buffer
	_, err := r.WriteTo(&limited{&out})
	if errors.Is(err, errLimit) {
		err = nil
	}
	return out.Bytes(), err
}

var errLimit = errors.New("enough")

type limited struct{ out *bytes.Buffer }

func (w *limited) Write(p []byte) (int, error) {
	room := contentLimit + 1 - w.out.Len()
	if len(p) > room {
		w.out.Write(p[:room])
		return room, errLimit
	}
	return w.out.Write(p)
}

type randomly struct {
	src io.Reader
	rng *rand.Rand
}

func randomReader(src io.Reader) io.Reader { return &randomly{src, rand.New(rand.NewPCG(1, 2))} }

func (r *randomly) Read(p []byte) (int, error) {
	n := r.rng.IntN(60)
	if r.rng.IntN(4) == 0 {
		n *= 50
	}
	return r.src.Read(p[:min(n, len(p))])
}

func oracle(open func(io.Reader) (io.Reader, error), stream []byte) ([]byte, error) {
	r, err := open(bytes.NewReader(stream))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, contentLimit+1))
}

func byKlauspost(stream []byte) ([]byte, error) {
	return oracle(func(r io.Reader) (io.Reader, error) { return kpgzip.NewReader(r) }, stream)
}

func byStandard(stream []byte) ([]byte, error) {
	return oracle(func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) }, stream)
}

// compare decodes a stream in all ways and by all decoders. Where the stream is right all must give the same
// content. Where it is wrong all must find that, and what they gave until then must not contradict.
func compare(t *testing.T, r *Reader, stream []byte) {
	t.Helper()
	content, verdict := ways[0].decoded(r, stream)
	for _, w := range ways[1:] {
		got, err := w.decoded(r, stream)
		if len(content) > contentLimit && len(got) > contentLimit {
			verdict, err = nil, nil // whether a fault behind the limit was met depends on the sizes of reads
		}
		if fmt.Sprint(err) != fmt.Sprint(verdict) {
			t.Fatalf("%s: %v, but %s: %v\n%x", ways[0].name, verdict, w.name, err, stream)
		}
		if !bytes.Equal(got, content) {
			t.Fatalf("%s: %d bytes, but %s: %d bytes, and others\n%x", ways[0].name, len(content), w.name, len(got), stream)
		}
	}
	for name, decode := range map[string]func([]byte) ([]byte, error){"klauspost": byKlauspost, "compress/gzip": byStandard} {
		want, err := decode(stream)
		if len(want) > contentLimit && len(content) > contentLimit {
			continue
		}
		var e *Error
		switch {
		case name == "compress/gzip" && errors.As(verdict, &e) && e.Reason == reservedFlags:
			continue // which ignores them
		case name == "klauspost" && err == nil && errors.As(verdict, &e) && e.Member > 1 && errors.Is(e, io.ErrUnexpectedEOF):
			continue // which takes a cut within the extra field of a further member for the end
		}
		if (err == nil) != (verdict == nil) {
			t.Fatalf("%s: %v, but ours: %v\n%x", name, err, verdict, stream)
		}
		n := len(want)
		if err != nil {
			n = min(len(want), len(content))
		}
		if len(content) < n || !bytes.Equal(content[:n], want[:n]) || err == nil && len(content) != n {
			t.Fatalf("%s: %d bytes, but ours: %d bytes, and others\n%x", name, len(want), len(content), stream)
		}
	}
}

// FuzzInflate compares decoders. What it is given is taken as a stream, and as deflate data that is put
// between a header and the trailer that fits it, or else hardly any change would get past the checksum.
func FuzzInflate(f *testing.F) {
	for _, c := range crafted() {
		f.Add(c.stream)
		if len(c.stream) > 18 {
			f.Add(c.stream[10 : len(c.stream)-8])
		}
	}
	r := NewReader(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		compare(t, r, data)
		compare(t, r, member(data))
		compare(t, r, slices.Concat(member(data), member(data)))
	})
}

func TestCrafted(t *testing.T) {
	r := NewReader(nil)
	for _, c := range crafted() {
		t.Run(c.name, func(t *testing.T) {
			compare(t, r, c.stream)
			got, err := io.ReadAll(NewReader(bytes.NewReader(c.stream)))
			var e *Error
			switch {
			case c.err == nil && err != nil:
				t.Fatalf("got %v", err)
			case c.err == nil && c.content != nil && !bytes.Equal(got, c.content):
				t.Fatalf("got %d bytes, want %d", len(got), len(c.content))
			case c.err == nil:
			case !errors.Is(err, c.err) || !errors.As(err, &e) || e.Reason != c.reason:
				t.Fatalf("got %v, want %v: %s", err, c.err, c.reason)
			case e.Offset > int64(len(c.stream)) || e.Offset < 0:
				t.Fatalf("offset %d in a stream of %d bytes", e.Offset, len(c.stream))
			}
		})
	}
}

// Blocks that no compressor would write: words of all lengths, distances to 32 KiB, matches over matches.
func TestRandomBlocks(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 30
	}
	r := NewReader(nil)
	for seed := range uint64(n) {
		rng := rand.New(rand.NewPCG(seed, 0))
		stream := member(random(rng, 1+rng.IntN(40)))
		compare(t, r, stream)
		if _, err := ways[0].decoded(r, stream); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		stream[10+rng.IntN(len(stream)-10)] ^= 1 << rng.IntN(8)
		compare(t, r, stream)
	}
}

func TestLevels(t *testing.T) {
	r := NewReader(nil)
	for _, s := range samples(t) {
		content := s.content[:min(len(s.content), 1<<20)]
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, stdgzip.BestSpeed, 6, stdgzip.BestCompression} {
			stream := deflated(t, content, level)
			compare(t, r, stream)
			if got, err := ways[0].decoded(r, stream); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s, level %d: %d bytes of %d, %v", s.name, level, len(got), len(content), err)
			}
		}
	}
}

// Wherever a stream is cut it ends too early, but between members.
func TestTruncated(t *testing.T) {
	r := NewReader(nil)
	for _, c := range crafted() {
		if c.err != nil || len(c.stream) > 5000 {
			continue
		}
		for n := range c.stream {
			compare(t, r, c.stream[:n])
			_, want := byStandard(c.stream[:n])
			_, err := ways[0].decoded(r, c.stream[:n])
			if want == nil {
				continue
			}
			var e *Error
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &e) || e.Offset != int64(n) {
				t.Fatalf("%s, cut to %d bytes: %v, want an unexpected EOF there", c.name, n, err)
			}
		}
	}
}

func TestFlippedBits(t *testing.T) {
	r := NewReader(nil)
	for _, c := range crafted() {
		if c.err != nil || len(c.stream) > 400 {
			continue
		}
		for i := range 8 * len(c.stream) {
			stream := slices.Clone(c.stream)
			stream[i/8] ^= 1 << (i % 8)
			compare(t, r, stream)
			// And past the checksum.
			if i >= 80 && i < 8*(len(stream)-8) {
				compare(t, r, member(stream[10:]))
			}
		}
	}
}
