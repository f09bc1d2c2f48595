package guest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// Version of the protocol that this package speaks. It changes only when an old peer would misunderstand a new
	// one: added fields and added types do not count, because both sides ignore what they don't know.
	Version = 1

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

// A Reader takes frames from a stream. It holds one buffer that grows to the largest frame seen, at most the cap.
// It is not safe for concurrent use.
type Reader struct {
	src *bufio.Reader
	max int
	buf []byte
}

// NewReader reads frames of at most maxFrame bytes (MaxGuestFrame or MaxHostFrame) from src.
func NewReader(src io.Reader, maxFrame int) *Reader {
	return &Reader{src: bufio.NewReaderSize(src, 16<<10), max: maxFrame}
}

// Next returns the type and body of the next frame. The body is valid until the following call. At the end of the
// stream between two frames the error is io.EOF, within a frame io.ErrUnexpectedEOF, and for bytes that can't be a
// frame it wraps ErrFrame; after any error the stream cannot be used further.
func (r *Reader) Next() (Type, []byte, error) {
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
	if _, err := io.ReadFull(r.src, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Type(b[0]), b[1:], nil
}

// Buffered says how many bytes were received but not yet returned.
func (r *Reader) Buffered() int { return r.src.Buffered() }

// appendFrame appends one frame to dst.
func appendFrame(dst []byte, t Type, body []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)+1))
	dst = append(dst, byte(t))
	return append(dst, body...)
}
