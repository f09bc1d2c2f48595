package inflate

import (
	"encoding/binary"
	"errors"
	"io"
)

// need makes bits hold at least n bits, of at most 56.
func (r *Reader) need(n uint64) error {
	if r.nbits >= n {
		return nil
	}
	return r.load(n)
}

func (r *Reader) load(n uint64) error {
	if r.inEnd-r.ip >= 8 {
		r.bits |= binary.LittleEndian.Uint64(r.in[r.ip:]) << r.nbits
		bytes := (63 - r.nbits) / 8
		r.ip += int(bytes)
		r.nbits += 8 * bytes
		r.bits &= 1<<r.nbits - 1
		return nil
	}
	for r.nbits < n {
		if r.ip == r.inEnd {
			if err := r.fill(); err != nil {
				return err
			}
		}
		r.bits |= uint64(r.in[r.ip]) << r.nbits
		r.ip++
		r.nbits += 8
	}
	return nil
}

// take uses up n bits, which bits holds.
func (r *Reader) take(n uint64) uint64 {
	v := r.bits & (1<<n - 1)
	r.bits >>= n
	r.nbits -= n
	return v
}

// byte uses up one byte, where bytes are aligned.
func (r *Reader) byte() (byte, error) {
	if err := r.need(8); err != nil {
		return 0, err
	}
	return byte(r.take(8)), nil
}

// fill reads from the source, which gives at least a byte or an error, when all that it gave is used up.
func (r *Reader) fill() error {
	r.offset += int64(r.inEnd)
	r.ip, r.inEnd = 0, 0
	for range maxEmptyReads {
		if r.srcEnd {
			return &Error{Offset: r.offset, Member: r.member, Err: io.ErrUnexpectedEOF}
		}
		if r.srcErr != nil {
			return r.srcErr
		}
		n, err := r.src.Read(r.in[:inSize])
		if n < 0 || n > inSize {
			return errors.New("reader returned an impossible count")
		}
		r.inEnd, r.srcErr, r.srcEnd = n, err, err == io.EOF
		if n > 0 {
			return nil
		}
	}
	return io.ErrNoProgress
}

// more reports whether there is a byte behind those that are used up.
func (r *Reader) more() (bool, error) {
	if r.nbits > 0 || r.ip < r.inEnd {
		return true, nil
	}
	err := r.fill()
	if err != nil && r.srcEnd {
		return false, nil
	}
	return true, err
}

// waits reports whether nothing more is there without a read from the source.
func (r *Reader) waits() bool {
	return r.ip == r.inEnd && r.nbits < 8
}
