package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// readAlign is what direct reads need: offsets, lengths and the buffer at multiples of it.
const readAlign = 4096

// alignedBuffer is of n bytes and begins at a multiple of readAlign.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+readAlign)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (readAlign - 1)) //nolint:gosec // Only to learn where the buffer lies.
	return b[skip : skip+n]
}

// openDirect opens a file for reads that go to the disk: what the host has in memory may be good while the disk
// is not, and should not be pushed out by a file that nobody wants. Where the file system can't, reads are
// ordinary ones.
func openDirect(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if errors.Is(err, syscall.EINVAL) {
		return os.Open(path)
	}
	return f, err
}

// each calls use with the bytes of f from at on, n of them.
func (v *verifier) each(ctx context.Context, f *os.File, at, n int64, use func([]byte)) error {
	if v.buffer == nil {
		v.buffer = alignedBuffer(1 << 20)
	}
	for end := at + n; at < end; {
		// Reads begin at a multiple of the alignment, at most that much too early.
		start := at &^ (readAlign - 1)
		got, err := f.ReadAt(v.buffer, start)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		skip := int(at - start)
		if got <= skip {
			return fmt.Errorf("ends at %d, want %d bytes: %w", start+int64(got), end, io.ErrUnexpectedEOF)
		}
		b := v.buffer[skip:min(int64(got), end-start)]
		use(b)
		at += int64(len(b))
		v.report.Bytes += int64(len(b))
		if v.opts.Progress != nil {
			v.opts.Progress(v.report.Bytes, max(v.total, v.report.Bytes))
		}
		if err := v.pace.wait(ctx, int64(len(b))); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) hash(ctx context.Context, f *os.File, at, n int64) (string, error) {
	h := sha256.New()
	if err := v.each(ctx, f, at, n, func(b []byte) { h.Write(b) }); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (v *verifier) read(ctx context.Context, f *os.File, n int64) ([]byte, error) {
	var all []byte
	err := v.each(ctx, f, 0, n, func(b []byte) { all = append(all, b...) })
	return all, err
}

// pace keeps reading below a rate.
type pace struct {
	rate  int64
	start time.Time
	n     int64
}

// wait is called after n more bytes. It ends early when ctx does.
func (p *pace) wait(ctx context.Context, n int64) error {
	if err := context.Cause(ctx); err != nil || p.rate <= 0 {
		return err
	}
	p.n += n
	return sleep(ctx, time.Until(p.start.Add(time.Duration(float64(p.n)/float64(p.rate)*float64(time.Second)))))
}
