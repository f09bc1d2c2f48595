package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// MaxPart is the most that one part of an image has, in bytes.
const MaxPart = 256 << 10

// Errors of images on their way.
var (
	ErrImage  = errors.New("is not what it should be")
	errDigest = errors.New("its sha256 is another one than was said")
)

// zeros is what is not sent.
var zeros = make([]byte, MaxPart)

// ReadImage gives the parts of an image of size bytes in order, without what is only zeros, and returns the sha256 of
// all of it. emit must not keep the bytes.
func ReadImage(ctx context.Context, f *os.File, size int64, emit func(offset int64, part []byte) error) (sum [sha256.Size]byte, err error) {
	h, part := sha256.New(), make([]byte, MaxPart)
	for at := int64(0); at < size; {
		data, end, err := nextData(f, at, size)
		if err != nil {
			return sum, err
		}
		hashZeros(h, data-at)
		for at = data; at < end; {
			if err := ctx.Err(); err != nil {
				return sum, context.Cause(ctx)
			}
			n, err := f.ReadAt(part[:min(MaxPart, end-at)], at)
			if n == 0 {
				return sum, fmt.Errorf("read the image at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))
			}
			h.Write(part[:n])
			if !bytes.Equal(part[:n], zeros[:n]) {
				if err := emit(at, part[:n]); err != nil {
					return sum, err
				}
			}
			at += int64(n)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// nextData is where the next bytes are that are no hole, from at on; both are size when there are none.
func nextData(f *os.File, at, size int64) (begin, end int64, err error) {
	begin, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case err != nil:
		return at, size, nil //nolint:nilerr // A file system that tells no holes has none.
	}
	if end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("look for what is in the image: %w", err)
	}
	return min(begin, size), min(end, size), nil
}

func hashZeros(h hash.Hash, n int64) {
	for ; n > 0; n -= min(n, MaxPart) {
		h.Write(zeros[:min(n, MaxPart)])
	}
}

// An ImageWriter puts an image together of its parts, in a file that is all zeros and as long as the image.
type ImageWriter struct {
	f        *os.File
	size, at int64
	h        hash.Hash
}

// NewImageWriter writes an image of size bytes to f.
func NewImageWriter(f *os.File, size int64) *ImageWriter {
	return &ImageWriter{f: f, size: size, h: sha256.New()}
}

// Part takes the next part, which comes from somebody who is not to be believed. The error wraps ErrImage when it cannot
// be one.
func (w *ImageWriter) Part(offset int64, part []byte) error {
	switch {
	case len(part) == 0 || len(part) > MaxPart:
		return fmt.Errorf("a part of %d bytes of an image %w: it has 1 to %d", len(part), ErrImage, MaxPart)
	case offset < w.at || offset > w.size-int64(len(part)):
		return fmt.Errorf("the part of an image at %d %w: it is not within %d and %d", offset, ErrImage, w.at, w.size)
	}
	hashZeros(w.h, offset-w.at)
	w.h.Write(part)
	if _, err := w.f.WriteAt(part, offset); err != nil {
		return err
	}
	w.at = offset + int64(len(part))
	return nil
}

// End tells whether the image is the one of that digest. Until then nobody may use it.
func (w *ImageWriter) End(sum []byte) error {
	hashZeros(w.h, w.size-w.at)
	w.at = w.size
	if !bytes.Equal(w.h.Sum(nil), sum) {
		return fmt.Errorf("the image %w: %w", ErrImage, errDigest)
	}
	return nil
}

// Import makes a volume of size bytes, which fill fills: a file of zeros of that length. What it makes must be an ext4
// file system; no more is looked at. When it returns nil, the volume is on the disk, unclaimed; when it does not, there is
// none. The error wraps ErrExists when there is one of that id.
func (s *Store) Import(ctx context.Context, id string, size int64, fill func(f *os.File) error) error {
	if err := CheckID(id); err != nil {
		return err
	}
	if whole, err := checkSize(size); err != nil || whole != size {
		return fmt.Errorf("make volume %s of an image: %d bytes are no size of a volume: it is %s to %s in steps of %d", id, size, text(MinSize), text(MaxSize), blockSize)
	}
	err := s.create(ctx, id, size, func(_ context.Context, f *os.File) error {
		if err := fill(f); err != nil {
			return err
		}
		super, err := readSuper(f.Name())
		switch {
		case err != nil:
			return fmt.Errorf("the image %w: %w", ErrImage, err)
		case super.blocks > uint64(size)/super.blockBytes:
			return fmt.Errorf("the image %w: its file system is larger than it", ErrImage)
		}
		return durable.WriteFile(filepath.Join(filepath.Dir(f.Name()), unclaimedName), nil, 0o600)
	})
	if err != nil {
		return fmt.Errorf("make volume %s of an image: %w", id, err)
	}
	return nil
}

// OpenSnapshot opens a snapshot for reading, and tells how large it is. The error wraps fs.ErrNotExist when there is none
// of that name.
func (s *Store) OpenSnapshot(id, name string) (*os.File, int64, error) {
	if err := CheckID(id); err != nil {
		return nil, 0, err
	}
	if !names.MatchString(name) {
		return nil, 0, fmt.Errorf("there is no snapshot %q: %w", name, os.ErrNotExist)
	}
	f, err := os.Open(s.path(id, snapshotsName, name+imageSuffix))
	if err != nil {
		return nil, 0, fmt.Errorf("open snapshot %s of volume %s: %w", name, id, err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}
