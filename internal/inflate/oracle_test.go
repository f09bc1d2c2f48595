package inflate

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
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
	pieces bool
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
	{name: "Next", pieces: true},
	{name: "Next with little room", source: randomReader, full: window + Page, pieces: true},
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
	if w.pieces {
		return inPieces(r)
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

// buffers are of the tests that compare, which go one after the other.
var buffers = [2]*Buffer{new(Buffer), new(Buffer)}

func inPieces(r *Reader) ([]byte, error) {
	var out []byte
	for i := 0; len(out) <= contentLimit; i++ {
		data, again, err := r.Next(buffers[i%2])
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, data[again:]...)
	}
	return out[:contentLimit+1], nil
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

// oracles are the other decoders.
type oracles struct {
	klauspost kpgzip.Reader
	standard  stdgzip.Reader
	flate     io.Reader
}

func (o *oracles) byKlauspost(stream []byte) ([]byte, error) { return drain(&o.klauspost, stream) }

func (o *oracles) byStandard(stream []byte) ([]byte, error) { return drain(&o.standard, stream) }

func drain(r interface {
	io.Reader
	Reset(r io.Reader) error
}, stream []byte,
) ([]byte, error) {
	if err := r.Reset(bytes.NewReader(stream)); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, contentLimit+1))
}

// member makes a member of gzip of deflate data, with the trailer that fits, as far as the data is right.
func (o *oracles) member(data []byte) []byte {
	in := bytes.NewReader(data)
	if o.flate == nil {
		o.flate = flate.NewReader(in)
	} else {
		_ = o.flate.(flate.Resetter).Reset(in, nil)
	}
	content, _ := io.ReadAll(io.LimitReader(o.flate, contentLimit+1))
	data = data[:len(data)-in.Len()]
	return slices.Concat([]byte{gzipID1, gzipID2, gzipDeflate, 0, 0, 0, 0, 0, 0, 255}, data, trailer(content))
}

func member(data []byte) []byte { return new(oracles).member(data) }

func trailer(content []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(content))
	return binary.LittleEndian.AppendUint32(b, uint32(len(content)))
}

// A comparer compares our decoder with the others.
type comparer struct {
	ours Reader
	oracles
}

// compare decodes a stream in all ways and by all decoders. Where the stream is right all must give the same
// content. Where it is wrong all must find that, and what they gave until then must not contradict.
func (c *comparer) compare(t *testing.T, stream []byte) {
	t.Helper()
	r := &c.ours
	content, verdict := ways[0].decoded(r, stream)
	for _, w := range ways[1:] {
		got, err := w.decoded(r, stream)
		if len(content) > contentLimit && len(got) > contentLimit {
			verdict, err = nil, nil // whether a fault behind the limit was met depends on the sizes of reads
		}
		if fmt.Sprint(err) != fmt.Sprint(verdict) {
			t.Fatalf("%s: %v, but %s: %v\n%.4000x", ways[0].name, verdict, w.name, err, stream)
		}
		if !bytes.Equal(got, content) {
			t.Fatalf("%s: %d bytes, but %s: %d bytes, and others\n%.4000x", ways[0].name, len(content), w.name, len(got), stream)
		}
	}
	for name, decode := range map[string]func([]byte) ([]byte, error){"klauspost": c.byKlauspost, "compress/gzip": c.byStandard} {
		want, err := decode(stream)
		if len(want) > contentLimit && len(content) > contentLimit {
			continue
		}
		var e *Error
		switch {
		case name == "compress/gzip" && errors.As(verdict, &e) && e.Reason == reservedFlags:
			continue // which ignores them
		case name == "klauspost" && errors.As(verdict, &e) && e.Member > 1 && (errors.Is(e, io.ErrUnexpectedEOF) || e.Reason == reservedFlags):
			continue // which takes a cut within the header of a further member for the end, before it looks at the flags
		case name == "klauspost" && errors.As(verdict, &e) && e.Reason == errUnusedDist:
			continue // which goes on with the code of an earlier block where there is none
		}
		if (err == nil) != (verdict == nil) {
			t.Fatalf("%s: %v, but ours: %v\n%.4000x", name, err, verdict, stream)
		}
		n := len(want)
		if err != nil {
			n = min(len(want), len(content))
		}
		if len(content) < n || !bytes.Equal(content[:n], want[:n]) || err == nil && len(content) != n {
			t.Fatalf("%s: %d bytes, but ours: %d bytes, and others\n%.4000x", name, len(want), len(content), stream)
		}
	}
}
