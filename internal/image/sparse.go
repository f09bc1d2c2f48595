package image

import (
	"archive/tar"
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// A sparse file has its parts that are not holes in the tar, one right after the other. archive/tar reads the
// three forms in which PAX describes that (GNU.sparse 0.0, 0.1 and 1.0) and gives the content; but the merge
// needs to know where in the tar each part is, so the map is read here once more. GNU tar's own older form,
// the entry type S, is refused.
const sparsePAX = "GNU.sparse."

// isSparse reports whether the tar may hold less than the whole file.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, sparsePAX) {
			return true
		}
	}
	return false
}

// setExtents says where the parts of a sparse file are, which has size bytes in the tar.
func (s *scanner) setExtents(n *erofs.Inode, h *tar.Header, size int64) error {
	numbers, err := s.sparseMap(h)
	if err != nil {
		return err
	}
	n.Sparse = true
	offset, end := uint64(s.tap.pos), uint64(0)
	for part := range slices.Chunk(numbers, 2) {
		start, length := part[0], part[1]
		if start < end || start > n.Size || length > n.Size-start {
			return refuse("is a sparse file whose part of %d bytes at %d overlaps another one or its end at %d", length, start, n.Size)
		}
		end = start + length
		if length == 0 {
			continue
		}
		// What a machine reads are whole sectors of the tar.
		if start%sectorSize != 0 || length%sectorSize != 0 && end != n.Size {
			return refuse("is a sparse file whose part of %d bytes at %d is not made of blocks of %d bytes: make the archive without --sparse",
				length, start, sectorSize)
		}
		if last := len(n.Extents) - 1; last >= 0 && n.Extents[last].Start+n.Extents[last].Size == start {
			n.Extents[last].Size += length
		} else {
			n.Extents = append(n.Extents, erofs.Extent{Start: start, Size: length, Offset: offset})
		}
		offset += length
	}
	if want := uint64(s.raw.header + size); offset != want {
		return refuse("is a sparse file whose parts end at byte %d of the archive, and its content at %d", offset, want)
	}
	if len(n.Extents) == 1 && n.Extents[0].Size == n.Size || n.Size == 0 {
		n.Offset, n.Sparse, n.Extents = uint64(s.tap.pos), false, nil
		if n.Size == 0 {
			n.Offset = 0
		}
		return nil
	}
	n.Offset = 0
	if chunks := erofs.Chunks(n, sectorSize); chunks > erofs.MaxChunks {
		return refuse("is a sparse file whose parts need an index of %d chunks, at most %d: make the archive without --sparse", chunks, erofs.MaxChunks)
	}
	return nil
}

// sparseMap gives the numbers of a file's map: start and length of each part.
func (s *scanner) sparseMap(h *tar.Header) ([]uint64, error) {
	var words []string
	switch version := h.PAXRecords[sparsePAX+"major"] + "." + h.PAXRecords[sparsePAX+"minor"]; version {
	case ".", "0.0", "0.1": // archive/tar makes the records of 0.0 those of 0.1
		if list := h.PAXRecords[sparsePAX+"map"]; list != "" {
			words = strings.Split(list, ",")
		} else if version == "." {
			return nil, refuse("is a sparse file without a map")
		}
	case "1.0":
		// The first bytes of the content: the number of parts, and the numbers of each, on lines of their own.
		lines := string(s.raw.behind)
		first, rest, _ := strings.Cut(lines, "\n")
		count, err := strconv.ParseUint(first, 10, 32)
		if words = strings.Split(rest, "\n"); err != nil || uint64(len(words)) < 2*count {
			return nil, refuse("is a sparse file with a map that is not one")
		}
		words = words[:2*count]
	default:
		return nil, refuse("is a sparse file of the unknown version %s", quote(version))
	}
	numbers := make([]uint64, 0, len(words))
	for _, word := range words {
		v, err := strconv.ParseUint(word, 10, 63)
		if err != nil {
			return nil, refuse("is a sparse file with a map that is not one: %s is no number", quote(word))
		}
		numbers = append(numbers, v)
	}
	if len(numbers)%2 != 0 {
		return nil, refuse("is a sparse file with a map of %d numbers, want pairs", len(numbers))
	}
	return numbers, nil
}

// rawHeaders stands between archive/tar and the stream and remembers what the former does not tell of an
// entry: how much of the tar its content takes, and the map in front of the content of a sparse file.
type rawHeaders struct {
	*tap
	next   int64 // where the entry begins; what is read before belongs to the one before it
	skip   int64 // what is left of the content of an extension header
	block  [sectorSize]byte
	filled int    // bytes of block
	header int64  // where block ends, once it is the entry's own header
	behind []byte // what was read after it
}

// maxBehind is more than archive/tar reads of a sparse map.
const maxBehind = 2 << 20

// expect prepares for the entry at next.
func (r *rawHeaders) expect(next int64) {
	r.next, r.skip, r.filled, r.header = next, 0, 0, 0
	if r.behind = r.behind[:0]; cap(r.behind) > 64<<10 {
		r.behind = nil
	}
}

// found tells of the entry's own header, which was read already and is behind us.
func (r *rawHeaders) found(block []byte) {
	copy(r.block[:], block)
	r.header = r.tap.pos
}

func (r *rawHeaders) Read(p []byte) (int, error) {
	pos := r.tap.pos
	n, err := r.tap.Read(p)
	if read := p[:n]; r.next < pos+int64(n) {
		r.note(read[max(0, r.next-pos):], max(pos, r.next))
	}
	return n, err
}

// note takes bytes of the entry that were read at pos.
func (r *rawHeaders) note(b []byte, pos int64) {
	for len(b) > 0 {
		if r.header > 0 {
			r.behind = append(r.behind, b[:min(len(b), maxBehind-len(r.behind))]...)
			return
		}
		n := int(min(r.skip, int64(len(b))))
		r.skip -= int64(n)
		if n == 0 {
			n = copy(r.block[r.filled:], b)
			if r.filled += n; r.filled == sectorSize {
				r.filled = 0
				switch r.block[156] {
				case tar.TypeXHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
					r.skip = alignTo(min(r.sizeField(), math.MaxInt64-sectorSize), sectorSize)
				default:
					r.header = pos + int64(n)
				}
			}
		}
		b, pos = b[n:], pos+int64(n)
	}
}

// contentSize is how many bytes the entry's content takes in the tar.
func (r *rawHeaders) contentSize(h *tar.Header) (int64, error) {
	if r.header == 0 {
		return 0, refuse("has no header where the entry before it ends")
	}
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return 0, nil // whatever the header says
	case tar.TypeXGlobalHeader:
		return r.tap.pos - r.header, nil // archive/tar has read it
	}
	if !isSparse(h) {
		return h.Size, nil
	}
	size := r.sizeField()
	if record := h.PAXRecords["size"]; record != "" {
		v, err := strconv.ParseInt(record, 10, 64)
		if err != nil {
			return 0, refuse("has a size that is no number: %s", quote(record))
		}
		size = v
	}
	if size < 0 {
		return 0, refuse("has a size below 0")
	}
	return size, nil
}

// sizeField reads the size of a header block as archive/tar does, which has found it to be good, or will find
// it not to be.
func (r *rawHeaders) sizeField() int64 {
	field := r.block[124:136]
	if field[0]&0x80 != 0 { // a binary number, of which more than 63 bits are refused
		return int64(binary.BigEndian.Uint64(field[4:]) & math.MaxInt64)
	}
	digits, _, _ := strings.Cut(strings.Trim(string(field), " \x00"), "\x00")
	v, err := strconv.ParseInt(digits, 8, 64)
	if err != nil {
		return 0
	}
	return v
}
