package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// Version of the protocol that this package speaks. It changes only when an old peer would misunderstand a new
	// one: added fields and added types do not count, because both sides ignore what they don't know.
	//
	// Version 2 lets a host take up a session that another began.
	Version = 2
	// MinVersion is the oldest version of a guest that a Host gets along with, although it can't resume a session
	// with one that is older than ResumeVersion.
	MinVersion    = 1
	ResumeVersion = 2

	// MaxGuestFrame bounds what follows the length word in frames from the guest.
	MaxGuestFrame = 64 << 10
	// MaxHostFrame bounds what follows the length word in frames from the host; a Config is the only large one.
	MaxHostFrame = 1 << 20

	// ControlChannel and LogsChannel are the names of the two virtio-serial ports.
	ControlChannel = "pinnace.control"
	LogsChannel    = "pinnace.logs"

	// ControlPort and LogsPort are the vsock ports of the host that a guest connects to where a VM has no
	// virtio-serial ports.
	ControlPort = 7001
	LogsPort    = 7002
)

// ErrFrame is wrapped by every error that means "these bytes are not a frame of this protocol".
var ErrFrame = errors.New("not a valid frame")

const lengthBytes = 4

// A restart mark says that what follows has nothing to do with what came before: a new session begins, and the one
// before it may have ended within a frame. No frame holds these bytes, because a body is text and has neither NUL nor
// 0xff in it, and a length has fewer NULs. The mark is longer than leastNULs because a reader that waits for the rest
// of a length or of a body takes some of it for that.
const (
	restartMark = "\x00\x00\x00\x00\x00\x00\x00\x00\xff"
	leastNULs   = 4
)

// AppendRestart appends a restart mark to dst. A frame has to follow.
func AppendRestart(dst []byte) []byte { return append(dst, restartMark...) }

// A Reader takes frames from a stream. It holds one buffer that grows to the largest frame seen, at most the cap.
// It is not safe for concurrent use.
type Reader struct {
	src         *bufio.Reader
	max         int
	restartable bool
	buf         []byte
}

const readerBytes = 16 << 10

// NewReader reads frames of at most maxFrame bytes (MaxGuestFrame or MaxHostFrame) from src.
func NewReader(src io.Reader, maxFrame int) *Reader {
	return &Reader{src: bufio.NewReaderSize(src, readerBytes), max: maxFrame}
}

// NewRestartableReader is NewReader for a stream in which sessions follow each other: behind bytes that are no frame,
// such as one that was cut, Next goes on after the next restart mark.
func NewRestartableReader(src io.Reader, maxFrame int) *Reader {
	r := NewReader(src, maxFrame)
	r.restartable = true
	return r
}

// Next returns the type and body of the next frame. The body is valid until the following call. At the end of the
// stream between two frames the error is io.EOF, within a frame io.ErrUnexpectedEOF, and for bytes that can't be a
// frame it wraps ErrFrame; after any error the stream cannot be used further, except with SkipToRestart after ErrFrame.
func (r *Reader) Next() (Type, []byte, error) {
	for {
		t, body, err := r.next()
		if !r.restartable || !errors.Is(err, ErrFrame) {
			return t, body, err
		}
		if err := r.SkipToRestart(func(int) error { return nil }); err != nil {
			return 0, nil, err
		}
	}
}

func (r *Reader) next() (Type, []byte, error) {
	var head [lengthBytes]byte
	if _, err := io.ReadFull(r.src, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n == 0:
		return 0, nil, fmt.Errorf("%w: it has no type", ErrFrame)
	case uint64(n) > uint64(r.max):
		return 0, nil, fmt.Errorf("%w: %d bytes long, at most %d are allowed", ErrFrame, n, r.max)
	}
	if cap(r.buf) < int(n) {
		r.buf = make([]byte, n)
	}
	b := r.buf[:n]
	if err := r.fill(b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Type(b[0]), b[1:], nil
}

// ready tells whether Next has a frame without reading from the stream.
func (r *Reader) ready() bool {
	have := r.src.Buffered()
	if have < lengthBytes {
		return false
	}
	head, err := r.src.Peek(lengthBytes)
	return err == nil && uint64(have) >= lengthBytes+uint64(binary.BigEndian.Uint32(head))
}

// fill reads all of b. Where bytes come that no frame holds, it leaves them in the stream at once: whoever waited for
// the rest of a frame that was cut would take the next ones for it.
func (r *Reader) fill(b []byte) error {
	for len(b) > 0 {
		if _, err := r.src.Peek(1); err != nil {
			return err
		}
		there, err := r.src.Peek(min(r.src.Buffered(), len(b)))
		if err != nil {
			return err
		}
		nul := bytes.IndexByte(there, 0)
		if nul >= 0 {
			there = there[:nul]
		}
		if _, err := r.src.Discard(copy(b, there)); err != nil {
			return err
		}
		if nul >= 0 {
			return fmt.Errorf("%w: a NUL in it", ErrFrame)
		}
		b = b[len(there):]
	}
	return nil
}

// SkipToRestart throws away what comes up to the end of the next restart mark. It calls pace for every so many bytes,
// and gives up with its error.
func (r *Reader) SkipToRestart(pace func(bytes int) error) error {
	for nuls, n := 0, 1; ; n++ {
		b, err := r.src.ReadByte()
		switch {
		case err != nil:
			return err
		case b == 0:
			nuls++
		case b == 0xff && nuls >= leastNULs:
			return nil
		default:
			nuls = 0
		}
		if n%readerBytes == 0 {
			if err := pace(readerBytes); err != nil {
				return err
			}
		}
	}
}

// Buffered says how many bytes were received but not yet returned.
func (r *Reader) Buffered() int { return r.src.Buffered() }

// appendFrame appends one frame to dst.
func appendFrame(dst []byte, t Type, body []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)+1))
	dst = append(dst, byte(t))
	return append(dst, body...)
}
