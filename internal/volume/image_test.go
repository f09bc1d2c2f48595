package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// part is one of an image on its way.
type part struct {
	offset int64
	data   []byte
}

// send reads the image of a volume as it is sent.
func send(t *testing.T, path string) (parts []part, size int64, sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sum, err = ReadImage(t.Context(), f, st.Size(), func(offset int64, b []byte) error {
		parts = append(parts, part{offset, bytes.Clone(b)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return parts, st.Size(), sum
}

func receive(parts []part, size int64, sum []byte) func(f *os.File) error {
	return func(f *os.File) error {
		w := NewImageWriter(f, size)
		for _, p := range parts {
			if err := w.Part(p.offset, p.data); err != nil {
				return err
			}
		}
		return w.End(sum)
	}
}

// TestImages: the image of a volume makes another one that is the same in every byte, and sends no zeros; one that was
// changed or cut off on its way makes none.
func TestImages(t *testing.T) {
	if _, err := program("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	if err := s.Create(t.Context(), "one", size); err != nil {
		t.Fatal(err)
	}
	parts, length, sum := send(t, s.path("one", imageName))
	sent := 0
	for _, p := range parts {
		sent += len(p.data)
	}
	whole, err := os.ReadFile(s.path("one", imageName))
	if err != nil || length != size || sum != sha256.Sum256(whole) || sent > size/4 {
		t.Fatalf("%v, %d of %d bytes were sent, with the digest %x", err, sent, length, sum)
	}
	if err := s.Import(t.Context(), "two", size, receive(parts, size, sum[:])); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.path("two", imageName)); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("what came is not what was sent, %v", err)
	}
	if err := s.Import(t.Context(), "two", size, receive(parts, size, sum[:])); !errors.Is(err, ErrExists) {
		t.Errorf("over one that is there: %v", err)
	}
	if info, err := s.Stat("two"); err != nil || info.Allocated > size/2 {
		t.Errorf("got %+v, %v", info, err)
	}

	flipped := bytes.Clone(parts[1].data)
	flipped[7] ^= 1
	for what, fill := range map[string]func(*os.File) error{
		"a bit flipped":        receive([]part{parts[0], {parts[1].offset, flipped}}, size, sum[:]),
		"a part less":          receive(parts[1:], size, sum[:]),
		"another digest":       receive(parts, size, make([]byte, sha256.Size)),
		"no digest":            receive(parts, size, nil),
		"parts out of order":   receive([]part{parts[1], parts[0]}, size, sum[:]),
		"a part behind it":     receive([]part{{size - 1, []byte("ab")}}, size, sum[:]),
		"a part before it":     receive([]part{{-1, []byte("ab")}}, size, sum[:]),
		"an overflow":          receive([]part{{1<<63 - 1, []byte("ab")}}, size, sum[:]),
		"an empty part":        receive([]part{{0, nil}}, size, sum[:]),
		"too large a part":     receive([]part{{0, make([]byte, MaxPart+1)}}, size, sum[:]),
		"no file system in it": receive(nil, size, zeroSum(size)),
	} {
		if err := s.Import(t.Context(), "bad", size, fill); !errors.Is(err, ErrImage) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Import(t.Context(), "bad", size, func(*os.File) error { return io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("one that was cut off: %v", err)
	}
	for _, odd := range []int64{0, -1, size + 1, MinSize - 4096, MaxSize + 4096} {
		if err := s.Import(t.Context(), "bad", odd, receive(parts, odd, sum[:])); err == nil {
			t.Errorf("a volume of %d bytes", odd)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, "*bad*"))
	temps, globErr := filepath.Glob(filepath.Join(s.dir, ".tmp-*"))
	if err != nil || globErr != nil || len(left)+len(temps) > 0 {
		t.Errorf("left over: %v %v, %v %v", left, temps, err, globErr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := os.Open(s.path("one", imageName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := ReadImage(ctx, f, size, func(int64, []byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("for nobody any more: %v", err)
	}
}

func zeroSum(size int64) []byte {
	h := sha256.New()
	hashZeros(h, size)
	return h.Sum(nil)
}
