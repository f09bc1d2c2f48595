package inflate

import (
	"hash/crc32"
	"io"
)

const (
	gzipID1     = 0x1f
	gzipID2     = 0x8b
	gzipDeflate = 8

	flagHeaderSum = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagsReserved = 0xe0

	// With its final zero. RFC 1952 sets no bound; this is the one of compress/gzip, so that both take the
	// same streams.
	maxHeaderString = 512

	reservedFlags = "reserved flags are set"
)

// A header is being read, and its checksum made.
type header struct {
	r   *Reader
	sum uint32 // the complement of the CRC-32 so far
}

func (h *header) byte() (byte, error) {
	b, err := h.r.byte()
	h.sum = crc32.IEEETable[byte(h.sum)^b] ^ h.sum>>8
	return b, err
}

// readHeader reads the header of a member, or finds the end of the stream.
func (r *Reader) readHeader() error {
	if r.member > 0 {
		more, err := r.more()
		if err != nil {
			return err
		}
		if !more {
			r.ended = true
			return io.EOF
		}
	}
	r.checksum() // of the member before
	r.member++
	r.start, r.sum, r.size = r.op, 0, 0
	h := header{r: r, sum: ^uint32(0)}
	if err := h.read(); err != nil {
		return err
	}
	r.state = atBlock
	return nil
}

func (h *header) read() error {
	var fixed [10]byte // ID1, ID2, CM, FLG, MTIME, XFL, OS
	for i := range fixed {
		b, err := h.byte()
		if err != nil {
			return err
		}
		fixed[i] = b
		switch {
		case i == 0 && b != gzipID1, i == 1 && b != gzipID2:
			if h.r.member > 1 {
				return h.r.fault(ErrHeader, "what follows the last member is not another one")
			}
			return h.r.fault(ErrHeader, "does not begin as gzip does")
		case i == 2 && b != gzipDeflate:
			return h.r.fault(ErrHeader, "unknown compression method")
		case i == 3 && b&flagsReserved != 0:
			return h.r.fault(ErrHeader, reservedFlags)
		}
	}
	flags := fixed[3]
	if flags&flagExtra != 0 {
		if err := h.skipExtra(); err != nil {
			return err
		}
	}
	if flags&flagName != 0 {
		if err := h.skipString("file name"); err != nil {
			return err
		}
	}
	if flags&flagComment != 0 {
		if err := h.skipString("comment"); err != nil {
			return err
		}
	}
	if flags&flagHeaderSum != 0 {
		return h.check()
	}
	return nil
}

func (h *header) skipExtra() error {
	low, err := h.byte()
	if err != nil {
		return err
	}
	high, err := h.byte()
	if err != nil {
		return err
	}
	for range int(low) | int(high)<<8 {
		if _, err := h.byte(); err != nil {
			return err
		}
	}
	return nil
}

func (h *header) skipString(what string) error {
	for range maxHeaderString {
		b, err := h.byte()
		if err != nil {
			return err
		}
		if b == 0 {
			return nil
		}
	}
	return h.r.fault(ErrHeader, what+" of more than 511 bytes")
}

func (h *header) check() error {
	want := uint16(^h.sum)
	if err := h.r.need(16); err != nil {
		return err
	}
	if uint16(h.r.take(16)) != want {
		return h.r.fault(ErrHeader, "header does not fit its checksum")
	}
	return nil
}

// readTrailer checks the content of a member.
func (r *Reader) readTrailer() error {
	r.checksum()
	r.take(r.nbits % 8)
	if err := r.need(32); err != nil {
		return err
	}
	if uint32(r.take(32)) != r.sum {
		return r.fault(ErrChecksum, "CRC-32 is different")
	}
	if err := r.need(32); err != nil {
		return err
	}
	if uint32(r.take(32)) != r.size {
		return r.fault(ErrChecksum, "length is different")
	}
	r.state = atHeader
	r.pause = r.waits() && r.done < r.op
	return nil
}
