package inflate

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"
)

func TestReaderIsAReader(t *testing.T) {
	content := bytes.Repeat([]byte("It is a reader. "), 20_000)
	if err := iotest.TestReader(NewReader(bytes.NewReader(deflated(t, content, 6))), content); err != nil {
		t.Error(err)
	}
}

func TestSize(t *testing.T) {
	if size := unsafe.Sizeof(Reader{}); size > 256<<10 {
		t.Errorf("a Reader takes %d bytes", size)
	}
}

func TestEndStays(t *testing.T) {
	r := NewReader(bytes.NewReader(deflated(t, []byte("x"), 6)))
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n, err := r.Read(make([]byte, 9)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("got %d, %v", n, err)
		}
		if n, err := r.WriteTo(io.Discard); n != 0 || err != nil {
			t.Errorf("got %d, %v", n, err)
		}
	}
}

func TestReadIntoNothing(t *testing.T) {
	r := NewReader(iotest.ErrReader(errors.New("read")))
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

// What the source returns comes out as it is, behind all content before it.
func TestSourceErrors(t *testing.T) {
	stream := deflated(t, bytes.Repeat([]byte("abcdefghij"), 1000), 6)
	for _, broken := range []error{errors.New("connection reset"), io.ErrUnexpectedEOF, wrapped{io.EOF}} {
		for n := range len(stream) + 1 {
			want, _ := ways[0].decoded(new(Reader), stream[:n])
			got, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken))))
			if err != broken || !bytes.Equal(got, want) { //nolint:errorlint // the very same
				t.Fatalf("after %d bytes: %d bytes, %v; want %d, %v", n, len(got), err, len(want), broken)
			}
			written, err := NewReader(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken))).WriteTo(io.Discard)
			if err != broken || written != int64(len(want)) { //nolint:errorlint // the very same
				t.Fatalf("after %d bytes: wrote %d, %v", n, written, err)
			}
		}
	}
}

type wrapped struct{ error }

func (w wrapped) Unwrap() error { return w.error }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestOddSources(t *testing.T) {
	for name, tt := range map[string]struct {
		n    int
		want string
	}{
		"nothing, for ever": {0, io.ErrNoProgress.Error()},
		"less than nothing": {-1, "impossible"},
		"more than asked":   {inSize + 1, "impossible"},
	} {
		_, err := io.ReadAll(NewReader(readerFunc(func([]byte) (int, error) { return tt.n, nil })))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A writer that takes less, or fails, gets the rest in the next call; so does Read.
func TestOddWriters(t *testing.T) {
	content := generate(false)[:400_000]
	r := NewReader(bytes.NewReader(deflated(t, content, 6)))
	var got bytes.Buffer
	full := errors.New("disk full")
	for step := 0; ; step++ {
		var want error
		n, err := r.WriteTo(writerFunc(func(p []byte) (int, error) {
			switch step % 4 {
			case 0:
				want = io.ErrShortWrite
				return got.Write(p[:len(p)/2])
			case 1:
				want = full
				n, _ := got.Write(p[:min(len(p), 1000)])
				return n, full
			case 2:
				want = full
				return 0, full
			default:
				return got.Write(p)
			}
		}))
		if !errors.Is(err, want) {
			t.Fatalf("step %d: %d, %v, want %v", step, n, err, want)
		}
		if want == nil {
			break
		}
		if _, err := io.CopyN(&got, struct{ io.Reader }{r}, 100); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), content) {
		t.Error("content differs")
	}
	r.Reset(bytes.NewReader(deflated(t, content, 6)))
	if _, err := r.WriteTo(writerFunc(func(p []byte) (int, error) { return len(p) + 1, nil })); err == nil {
		t.Error("a writer that took more than there was is believed")
	}
}

// A Reader that ended in the middle of anything starts anew.
func TestReset(t *testing.T) {
	content := generate(true)[:300_000]
	stream := deflated(t, content, 6)
	r := NewReader(nil)
	for _, made := range crafted() {
		r.Reset(bytes.NewReader(made.stream))
		_, _ = io.CopyN(io.Discard, r, int64(len(made.stream)/2))
		if got, err := ways[0].decoded(r, stream); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("after %q: %d bytes, %v", made.name, len(got), err)
		}
	}
	if n := testing.AllocsPerRun(5, func() {
		r.Reset(bytes.NewReader(stream))
		_, _ = r.WriteTo(io.Discard)
	}); n > 2 { // the source, and an error that stands for its end
		t.Errorf("decoding takes %v allocations", n)
	}
}

// What a writer flushed is given before more is waited for.
func TestFlushed(t *testing.T) {
	src, dst := io.Pipe()
	defer src.Close()
	done := make(chan struct{})
	replies := make(chan string)
	go func() {
		defer close(done)
		w := stdgzip.NewWriter(dst)
		for _, s := range []string{"first", "second", strings.Repeat("third", 1000)} {
			_, _ = io.WriteString(w, s)
			_ = w.Flush()
			if <-replies != s {
				break
			}
		}
		_ = w.Close()
		// And the same at the end of a member.
		<-replies
		_ = dst.Close()
	}()
	r := NewReader(src)
	for _, want := range []string{"first", "second", strings.Repeat("third", 1000)} {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Errorf("got %.20q, %v", got, err)
		}
		replies <- string(got)
	}
	close(replies)
	if _, err := io.ReadAll(r); err != nil {
		t.Error(err)
	}
	<-done
}

// Ten gigabytes of zeros, of which the length does not fit its field.
func TestBomb(t *testing.T) {
	if testing.Short() {
		t.Skip("decodes 10 GiB")
	}
	const piece, pieces = 256 << 20, 40
	var block bytes.Buffer
	w, err := flate.NewWriter(&block, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	sum := uint32(0)
	for range piece / len(zeros) {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil { // ends with a whole byte
		t.Fatal(err)
	}
	for range piece / len(zeros) * pieces {
		sum = crc32.Update(sum, crc32.IEEETable, zeros)
	}
	stream := []io.Reader{bytes.NewReader([]byte{gzipID1, gzipID2, gzipDeflate, 0, 0, 0, 0, 0, 0, 255})}
	for range pieces {
		stream = append(stream, bytes.NewReader(block.Bytes()))
	}
	end := binary.LittleEndian.AppendUint32(new(crafter).fixed(true).bytes(), sum)
	stream = append(stream, bytes.NewReader(binary.LittleEndian.AppendUint32(end, piece*pieces&(1<<32-1))))

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, err := NewReader(io.MultiReader(stream...)).WriteTo(io.Discard)
	runtime.ReadMemStats(&after)
	if err != nil || n != piece*pieces {
		t.Errorf("%d bytes, %v", n, err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 700<<10 {
		t.Errorf("allocated %d bytes", used)
	}
}

func TestErrorMessages(t *testing.T) {
	a := member(new(crafter).fixed(true, literals("abc")...).bytes())
	for want, stream := range map[string][]byte{
		"gzip: byte 1: no valid gzip header: does not begin as gzip does":                                []byte("plain"),
		"gzip: byte 20: unexpected EOF":                                                                  a[:20],
		"gzip: byte 24, member 2: no valid gzip header: what follows the last member is not another one": append(slices.Clip(a), "x"...),
		"gzip: byte 11: compressed data is invalid: unknown kind of block":                               append(a[:10:10], 7),
		"gzip: byte 19: content does not fit its checksum: CRC-32 is different":                          append(a[:15:15], make([]byte, 8)...),
	} {
		_, err := io.ReadAll(NewReader(bytes.NewReader(stream)))
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

// Pieces make up the content, begin and end where Next says, and stay as they are while the next is decoded.
func TestNext(t *testing.T) {
	content := append(bytes.Repeat([]byte("It comes in pieces. "), 100_000), make([]byte, 3_000_001)...)
	half := len(content)/2 + 7
	stream := append(deflated(t, content[:half], 6), deflated(t, content[half:], 1)...)
	r := NewReader(iotest.HalfReader(bytes.NewReader(stream)))
	buffers := [2]*Buffer{new(Buffer), new(Buffer)}
	var got, before []byte
	for i := 0; ; i++ {
		saved := bytes.Clone(before)
		data, again, err := r.Next(buffers[i%2])
		if !bytes.Equal(before, saved) {
			t.Fatalf("piece %d was changed by the next", i-1)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if again >= Page || again != len(got)%Page || !bytes.Equal(data[:again], got[len(got)-again:]) {
			t.Fatalf("piece %d repeats %d bytes after %d", i, again, len(got))
		}
		if at := uintptr(unsafe.Pointer(unsafe.SliceData(data))); at%Page != 0 {
			t.Errorf("piece %d is at %#x", i, at)
		}
		got, before = append(got, data[again:]...), data
	}
	if !bytes.Equal(got, content) {
		t.Error("content is different")
	}
	if _, _, err := r.Next(buffers[0]); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: got %v", err)
	}
}
