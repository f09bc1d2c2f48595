package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/inflate"
)

// A pieces gives content in long pieces, each in one of two buffers in turn: one can be looked at while the
// next is made. data begins at a multiple of inflate.Page in the stream and in memory, and its first again bytes
// are those that the piece before ended with. At the end the error is io.EOF, without data.
type pieces interface {
	next() (data []byte, again int, err error)
}

const pieceSize = 512 << 10

// A gzipPieces decodes gzip of any number of members.
type gzipPieces struct {
	reader  *inflate.Reader
	buffers [2]*inflate.Buffer
	turn    int
}

func newGzipPieces(src io.Reader) *gzipPieces {
	return &gzipPieces{reader: inflate.NewReader(src), buffers: [2]*inflate.Buffer{new(inflate.Buffer), new(inflate.Buffer)}}
}

func (g *gzipPieces) next() ([]byte, int, error) {
	g.turn++
	return g.reader.Next(g.buffers[g.turn%2])
}

// A readerPieces reads from a reader.
type readerPieces struct {
	src     io.Reader
	buffers [2][]byte // Go puts what is this long on pages of its own
	turn    int
	last    []byte
	err     error
}

func newReaderPieces(src io.Reader) *readerPieces {
	return &readerPieces{src: src, buffers: [2][]byte{make([]byte, pieceSize), make([]byte, pieceSize)}}
}

func (r *readerPieces) next() ([]byte, int, error) {
	if r.err != nil {
		return nil, 0, r.err
	}
	r.turn++
	buffer := r.buffers[r.turn%2]
	again := copy(buffer, r.last[len(r.last)/inflate.Page*inflate.Page:])
	var n int
	n, r.err = fill(r.src, buffer[again:])
	r.last = buffer[:again+n]
	if n == 0 {
		return nil, 0, r.err
	}
	return r.last, again, nil
}

// decompress looks at the first bytes of a blob, because registries and media types are known to disagree
// with them, and gives its content. The function it returns frees what was taken.
func decompress(src io.Reader) (pieces, func(), error) {
	buffered := bufio.NewReaderSize(src, 16)
	magic, err := buffered.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case len(magic) == 0:
		return nil, nil, refuse("blob is empty, so it holds no tar")
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return newGzipPieces(buffered), func() {}, nil
	case isZstd(magic):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return newReaderPieces(z), z.Close, nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, nil, refuse("compressed with xz, want gzip, zstd or nothing")
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, nil, refuse("compressed with bzip2, want gzip, zstd or nothing")
	default:
		return newReaderPieces(buffered), func() {}, nil
	}
}

// isZstd knows a frame, and the skippable frames that zstd streams may begin with.
func isZstd(magic []byte) bool {
	if bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return true
	}
	return len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}

// An ahead makes pieces in a goroutine of its own, one ahead of the piece that is looked at.
type ahead struct {
	src  pieces
	full chan piece
	free chan struct{}
	done chan struct{}
	held bool // the caller looks at a piece
	err  error
}

type piece struct {
	data  []byte
	again int
	err   error
}

// newAhead starts to make pieces of src. It must be closed.
func newAhead(src pieces) *ahead {
	a := &ahead{src: src, full: make(chan piece, 2), free: make(chan struct{}, 2), done: make(chan struct{})}
	a.free <- struct{}{}
	a.free <- struct{}{}
	go a.run()
	return a
}

func (a *ahead) run() {
	defer close(a.done)
	for range a.free {
		p := a.make()
		a.full <- p
		if p.err != nil {
			return
		}
	}
}

// make makes a piece. A fault in a decoder is the layer's that it came from, not that of others in the process.
func (a *ahead) make() (p piece) {
	defer func() {
		if fault := recover(); fault != nil {
			p = piece{err: newPanicError(fault)}
		}
	}()
	p.data, p.again, p.err = a.src.next()
	return p
}

func (a *ahead) next() ([]byte, int, error) {
	if a.err != nil {
		return nil, 0, a.err
	}
	if a.held {
		a.free <- struct{}{}
	}
	a.held = true
	p := <-a.full
	a.err = p.err
	return p.data, p.again, p.err
}

// close waits for the goroutine, which ends when the source's read does. next must not be called again.
func (a *ahead) close() {
	close(a.free)
	for {
		select {
		case <-a.full:
		case <-a.done:
			return
		}
	}
}

// A panicError is a fault of ours.
type panicError struct {
	value any
	where string
}

// newPanicError is called by the function that recovered.
func newPanicError(value any) *panicError {
	e := &panicError{value: value}
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "runtime.") {
			e.where = fmt.Sprintf("%s:%d", f.Function, f.Line)
			return e
		}
		if !more {
			return e
		}
	}
}

func (e *panicError) Error() string {
	return fmt.Sprintf("fault in the program at %s: %v", e.where, e.value)
}

// fill reads until buffer is full or src ends. Unlike io.ReadFull it leaves src's error as it is: a cut
// stream stays one, and the end is the end.
func fill(src io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var m int
		m, err = src.Read(buffer[n:])
		n += m
	}
	return n, err
}

// A pageWriter writes pieces to a file in whole pages, as a file needs it that is written past the page cache.
// The last page is filled up with zeros, which whoever has the file cuts off.
type pageWriter struct {
	file *os.File
	at   int64  // up to here it is written
	rest []byte // from there, less than a page
}

func (w *pageWriter) write(data []byte) error {
	whole := len(data) / inflate.Page * inflate.Page
	if err := w.put(data[:whole]); err != nil {
		return err
	}
	w.rest = data[whole:]
	return nil
}

func (w *pageWriter) put(data []byte) error {
	n, err := w.file.WriteAt(data, w.at)
	if errors.Is(err, syscall.EINVAL) && n == 0 && buffered(w.file) == nil {
		// This file system takes it, but not as we do.
		n, err = w.file.WriteAt(data, w.at)
	}
	w.at += int64(n)
	return err
}

// finish writes what is left. It must be called before the last piece's buffer is used again.
func (w *pageWriter) finish() error {
	if len(w.rest) == 0 {
		return nil
	}
	page := make([]byte, 64<<10)[:inflate.Page] // so long that it begins on a page
	copy(page, w.rest)
	return w.put(page)
}

// unbuffered makes what is written to f go past the page cache, where the file system can do it. A pull would
// push out of the cache what running machines use, to put there bytes of which a machine reads a small part; and
// copying them is a good part of what a pull costs.
func unbuffered(f *os.File) {
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err == nil {
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags|unix.O_DIRECT) // or it stays as it is
	}
}

func buffered(f *os.File) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_DIRECT == 0 {
		err = syscall.EINVAL
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	return err
}
