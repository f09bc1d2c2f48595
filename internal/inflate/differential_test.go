package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// FuzzInflate compares decoders. What it is given is taken as a stream, and as deflate data that is put
// between a header and the trailer that fits it, or else hardly any change would get past the checksum.
func FuzzInflate(f *testing.F) {
	for _, made := range crafted() {
		if len(made.stream) > 2000 {
			continue // changes to them would hardly ever matter
		}
		f.Add(made.stream)
		if len(made.stream) > 18 {
			f.Add(made.stream[10 : len(made.stream)-8])
		}
	}
	c := new(comparer)
	f.Fuzz(func(t *testing.T, data []byte) {
		c.compare(t, data)
		data = c.member(data)
		c.compare(t, data)
		c.compare(t, append(data, data...))
	})
}

func TestCrafted(t *testing.T) {
	c := new(comparer)
	for _, made := range crafted() {
		t.Run(made.name, func(t *testing.T) {
			c.compare(t, made.stream)
			got, err := io.ReadAll(NewReader(bytes.NewReader(made.stream)))
			var e *Error
			switch {
			case made.err == nil && err != nil:
				t.Fatalf("got %v", err)
			case made.err == nil && !bytes.Equal(got, made.content):
				t.Fatalf("got %d bytes, want %d", len(got), len(made.content))
			case made.err == nil:
			case !errors.Is(err, made.err) || !errors.As(err, &e) || e.Reason != made.reason:
				t.Fatalf("got %v, want %v: %s", err, made.err, made.reason)
			case e.Offset > int64(len(made.stream)) || e.Offset < 0:
				t.Fatalf("offset %d in a stream of %d bytes", e.Offset, len(made.stream))
			}
		})
	}
}

// Blocks that no compressor would write: words of all lengths, distances to 32 KiB, matches over matches.
func TestRandomBlocks(t *testing.T) {
	n := 200
	if testing.Short() {
		n = 20
	}
	c := new(comparer)
	for seed := range uint64(n) {
		rng := rand.New(rand.NewPCG(seed, 0))
		stream := c.member(random(rng, 1+rng.IntN(12)))
		c.compare(t, stream)
		if _, err := ways[0].decoded(&c.ours, stream); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		stream[10+rng.IntN(len(stream)-10)] ^= 1 << rng.IntN(8)
		c.compare(t, stream)
	}
}

func TestLevels(t *testing.T) {
	c := new(comparer)
	for _, s := range samples(t, 300<<10) {
		for _, level := range []int{stdgzip.HuffmanOnly, stdgzip.NoCompression, stdgzip.BestSpeed, 6, stdgzip.BestCompression} {
			stream := deflated(t, s.content, level)
			c.compare(t, stream)
			if got, err := ways[0].decoded(&c.ours, stream); err != nil || !bytes.Equal(got, s.content) {
				t.Errorf("%s, level %d: %d bytes of %d, %v", s.name, level, len(got), len(s.content), err)
			}
		}
	}
}

// Wherever a stream is cut it ends too early, but between members.
func TestTruncated(t *testing.T) {
	c := new(comparer)
	for _, made := range crafted() {
		if made.err != nil || len(made.stream) > 1000 {
			continue
		}
		for n := range made.stream {
			cut := made.stream[:n]
			c.compare(t, cut)
			if _, err := c.byStandard(cut); err == nil {
				continue
			}
			_, err := ways[0].decoded(&c.ours, cut)
			var e *Error
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &e) || e.Offset != int64(n) {
				t.Fatalf("%s, cut to %d bytes: %v, want an unexpected EOF there", made.name, n, err)
			}
		}
	}
}

func TestFlippedBits(t *testing.T) {
	c := new(comparer)
	for _, made := range crafted() {
		if made.err != nil || len(made.stream) > 300 {
			continue
		}
		for i := range 8 * len(made.stream) {
			stream := slices.Clone(made.stream)
			stream[i/8] ^= 1 << (i % 8)
			c.compare(t, stream)
			if i >= 80 { // and past the checksum
				c.compare(t, c.member(stream[10:]))
			}
		}
	}
}
