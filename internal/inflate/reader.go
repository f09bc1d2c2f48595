package inflate

import (
	"errors"
	"hash/crc32"
	"io"
)

const (
	window = 32 << 10 // how far back a match may reach

	// Powers of two, so that a mask keeps an index within. Few and long pieces are what those who write them
	// to a disk want; beyond this the processor's cache would not hold them.
	inSize  = 64 << 10
	outSize = 512 << 10

	// How often a source may return nothing, without an error, before it is given up.
	maxEmptyReads = 100
)

// A state is what comes next in the stream.
type state uint8

const (
	atHeader state = iota // of a member, or the end
	atBlock
	inStored
	inCodes
	atTrailer
)

// A Reader decodes a gzip stream. It must not be used by several goroutines at once.
type Reader struct {
	src    io.Reader
	srcErr error // what src ended with; it counts when all that came before it is used up
	srcEnd bool  // srcErr is io.EOF
	err    error // what the Reader ended with
	ended  bool  // err is the end of a good stream

	// Compressed data: bits holds nbits bits that come before in[ip:inEnd], and zeros above them.
	bits   uint64
	nbits  uint64
	ip     int
	inEnd  int
	offset int64 // in the stream, of in[0]

	// Content: in out, [done:op] is not delivered yet, [start:done] is there for matches to reach back to.
	out    *Buffer
	total  int64 // of the stream, up to op
	start  int   // of the member, or of what is left of it
	done   int
	summed int // up to here it is in sum and size
	op     int
	full   int  // no round begins at or above
	pause  bool // deliver before more of src is waited for

	state  state
	final  bool // the block is the last one of its member
	fixed  bool // lit and dist are those of the fixed code
	stored int  // bytes of a stored block to come
	member int  // from 1
	sum    uint32
	size   uint32 // modulo 2^32, as in the trailer

	lengths [maxLits + maxDists]uint8
	pre     [preSize]entry
	dist    [distSize]entry
	lit     [litSize]entry

	// The eight bytes more are for the last index that the mask leaves to be the first of eight.
	in [inSize + 8]byte
}

// A Buffer is room for content, see Next.
type Buffer struct {
	bytes [outSize + 8]byte
}

// NewReader makes a Reader of the gzip stream that src gives. It reads nothing yet. Reads are of up to
// 64 KiB, and the last one finds that src has ended: a good stream is all that src gives.
func NewReader(src io.Reader) *Reader {
	r := new(Reader)
	r.Reset(src)
	return r
}

// Reset makes r start anew with the stream that src gives.
func (r *Reader) Reset(src io.Reader) {
	r.src, r.srcErr, r.srcEnd, r.err, r.ended = src, nil, false, nil, false
	r.bits, r.nbits, r.ip, r.inEnd, r.offset = 0, 0, 0, 0, 0
	r.start, r.done, r.summed, r.op, r.full, r.pause = 0, 0, 0, 0, outSize-outMargin, false
	r.total, r.state, r.member = 0, atHeader, 0
}

// Read returns io.EOF after the last member, when all of the stream proved right; content that it gave
// before is not proved yet. A stream that ends too early gives an *Error that wraps io.ErrUnexpectedEOF,
// one that is wrong another *Error, and a source that fails gives its own error, unchanged. All content
// before the fault is given first, and the error stays.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	content, err := r.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, content)
	r.done += n
	return n, nil
}

// WriteTo writes the content to w, in pieces of up to 512 KiB that are not copied for it. It returns nil
// where Read would return io.EOF, and Read's errors otherwise, or w's, after which another call goes on
// behind what w took.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		content, err := r.next()
		if err != nil {
			if r.ended {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(content)
		if n < 0 || n > len(content) {
			return total, errors.New("writer returned an impossible count")
		}
		r.done += n
		total += int64(n)
		if err == nil && n < len(content) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
}

// Page is what Next aligns content to, in the stream and in memory.
const Page = 4 << 10

// Next decodes into b, which must not be the Buffer of the call before, until it is full, and gives what
// was decoded without another copy. That other Buffer is only read, and not after Next has returned, so with
// two of them one piece can be looked at while the next is decoded. A Reader takes one way, Next or the
// others, until Reset.
//
// data begins at a multiple of Page in the stream, and its first again bytes, fewer than Page, are those that
// the piece before ended with: pieces can be written to where they belong in whole pages. Errors are
// Read's, and come without data.
func (r *Reader) Next(b *Buffer) (data []byte, again int, err error) {
	again = int(r.total % Page)
	keep := min(r.op, window+again)
	if r.out != nil {
		copy(b.bytes[:keep], r.out.bytes[r.op-keep:r.op])
	}
	r.start = max(0, r.start-(r.op-keep))
	r.done, r.summed, r.op, r.out = keep, keep, keep, b
	for r.done == r.op {
		if r.err != nil {
			return nil, 0, r.err
		}
		r.decode()
	}
	r.done = r.op
	return b.bytes[keep-again : r.op], again, nil
}

// next is content that was not delivered yet, or the error that there is no more.
func (r *Reader) next() ([]byte, error) {
	if r.out == nil {
		r.out = new(Buffer)
	}
	for r.done == r.op {
		if r.err != nil {
			return nil, r.err
		}
		if r.op >= r.full {
			r.slide()
		}
		r.decode()
	}
	return r.out.bytes[r.done:r.op], nil
}

// slide makes room where all that is there has been delivered.
func (r *Reader) slide() {
	keep := min(r.op-r.start, window)
	copy(r.out.bytes[:keep], r.out.bytes[r.op-keep:r.op])
	r.start, r.done, r.summed, r.op = 0, keep, keep, keep
}

// decode makes content until there is no room for more, or an error.
func (r *Reader) decode() {
	before := r.op
	r.pause = false
	for r.err == nil && r.op < r.full && !r.pause {
		switch r.state {
		case atHeader:
			r.err = r.readHeader()
		case atBlock:
			r.err = r.readBlock()
		case inStored:
			r.err = r.copyStored()
		case inCodes:
			r.err = r.readCodes()
		case atTrailer:
			r.err = r.readTrailer()
		}
	}
	r.checksum()
	r.total += int64(r.op - before)
}

// checksum adds what is new to the member's checksum, while it is still in the processor's cache.
func (r *Reader) checksum() {
	r.sum = crc32.Update(r.sum, crc32.IEEETable, r.out.bytes[r.summed:r.op])
	r.size += uint32(r.op - r.summed)
	r.summed = r.op
}

// fault makes an Error of the place that was reached.
func (r *Reader) fault(err error, reason string) error {
	return &Error{Offset: r.offset + int64(r.ip) - int64(r.nbits/8), Member: r.member, Reason: reason, Err: err}
}
