package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"strings"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// An index is what a layer's tar holds. Its entries stay encoded, as they are on disk: a layer of a million
// files is a few dozen bytes for each.
type index struct {
	size    int64 // of the tar, in bytes
	count   int
	payload string
}

// The index of a layer on disk: a header of indexMagic, the size of the tar, the number of entries, the
// length of the payload and its crc32c, and the payload: the entries in the tar's order. It is derived from
// the tar, so a version that can't be read is made again. The number in the magic is the version.
const (
	indexMagic  = "PINIDX3\n"
	indexHeader = 8 + 8 + 8 + 8 + 4
)

var errIndex = errors.New("index is damaged")

// An indexWriter collects the entries of an index, or passes them on to a file: then it holds few of them.
type indexWriter struct {
	payload strings.Builder
	scratch []byte
	last    string // path of the entry before
	count   int
	file    *indexFile // nil to collect
}

func (w *indexWriter) add(e *entry) {
	shared := w.shared(e.path)
	w.scratch = appendString(binary.AppendUvarint(w.scratch[:0], uint64(shared)), e.path[shared:])
	w.scratch = e.append(w.scratch)
	w.last = e.path
	var length [1 + binary.MaxVarintLen64]byte
	length[0] = byte(e.kind)
	n := binary.PutUvarint(length[1:], uint64(len(w.scratch)))
	w.payload.Write(length[:1+n])
	w.payload.Write(w.scratch)
	w.count++
	if w.file != nil && w.payload.Len() >= indexChunk {
		w.file.write(w.payload.String())
		w.payload.Reset()
	}
}

// shared is how much of a path is that of the entry before, and is not stored again: most are neighbours.
func (w *indexWriter) shared(path string) int {
	n := 0
	for n < min(len(path), len(w.last)) && path[n] == w.last[n] {
		n++
	}
	return n
}

// indexChunk is how much of an index is written at a time.
const indexChunk = 64 << 10

// finish writes the rest to the file, and the header in front of it.
func (w *indexWriter) finish(size int64) error {
	w.file.write(w.payload.String())
	w.payload.Reset()
	header := make([]byte, indexHeader)
	putHeader(header, size, uint64(w.count), uint64(w.file.length), w.file.sum)
	if w.file.err == nil {
		_, w.file.err = w.file.file.WriteAt(header, 0)
	}
	return w.file.err
}

// An indexFile is an index that is being written. The first error stays.
type indexFile struct {
	file   io.WriterAt
	length int64
	sum    uint32
	err    error
}

func (f *indexFile) write(payload string) {
	if f.err != nil {
		return
	}
	b := []byte(payload)
	f.sum = crc32.Update(f.sum, crc32.MakeTable(crc32.Castagnoli), b)
	_, f.err = f.file.WriteAt(b, indexHeader+f.length)
	f.length += int64(len(b))
}

func (w *indexWriter) index(size int64) *index {
	return &index{size: size, count: w.count, payload: w.payload.String()}
}

// encode gives the bytes of the index.
func (x *index) encode() []byte {
	b := make([]byte, indexHeader+len(x.payload))
	copy(b[indexHeader:], x.payload)
	putHeader(b, x.size, uint64(x.count), uint64(len(x.payload)), checksum(b[indexHeader:]))
	return b
}

// putHeader writes the header to the front of b.
func putHeader(b []byte, size int64, count, length uint64, sum uint32) {
	copy(b, indexMagic)
	le := binary.LittleEndian
	le.PutUint64(b[8:], uint64(size))
	le.PutUint64(b[16:], count)
	le.PutUint64(b[24:], length)
	le.PutUint32(b[32:], sum)
}

// append appends what follows kind, length and path: by kind the link's target or the inode.
func (e *entry) append(b []byte) []byte {
	switch e.kind {
	case kindLink:
		return appendString(b, e.link)
	case kindInode, kindDir:
	default:
		return b
	}
	n := &e.inode
	for _, v := range [...]uint64{
		uint64(n.Mode), uint64(n.UID), uint64(n.GID), uint64(n.Mtime), uint64(n.MtimeNsec),
		n.Size, n.Offset, uint64(n.Major), uint64(n.Minor),
	} {
		b = binary.AppendUvarint(b, v)
	}
	b = appendString(b, n.Target)
	b = binary.AppendUvarint(b, uint64(len(n.Xattrs)))
	for _, x := range n.Xattrs {
		b = appendString(appendString(b, x.Name), x.Value)
	}
	if !n.Sparse {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(n.Extents)))
	for _, x := range n.Extents {
		b = binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(b, x.Start), x.Size), x.Offset)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// checkIndex verifies the bytes of an index without decoding it, and gives the size of the tar.
func checkIndex(b []byte) (tarSize int64, err error) {
	var c indexCheck
	_, _ = c.Write(b) // it takes everything
	return c.tarSize()
}

// An indexCheck is checkIndex for bytes that are written to it, of which it keeps the header only: an index can be
// larger than what anybody wants in memory.
type indexCheck struct {
	header [indexHeader]byte
	length int64
	sum    uint32
}

func (c *indexCheck) Write(b []byte) (int, error) {
	n := len(b)
	if c.length < indexHeader {
		took := copy(c.header[c.length:], b)
		c.length += int64(took)
		b = b[took:]
	}
	c.sum = crc32.Update(c.sum, crc32.MakeTable(crc32.Castagnoli), b)
	c.length += int64(len(b))
	return n, nil
}

func (c *indexCheck) tarSize() (int64, error) {
	le := binary.LittleEndian
	b := c.header[:]
	switch payload := uint64(c.length - indexHeader); {
	case c.length < indexHeader || string(b[:8]) != indexMagic:
		return 0, fmt.Errorf("%w: no header", errIndex)
	case le.Uint64(b[24:]) != payload:
		return 0, fmt.Errorf("%w: %d bytes of payload, want %d", errIndex, payload, le.Uint64(b[24:]))
	case le.Uint32(b[32:]) != c.sum:
		return 0, fmt.Errorf("%w: wrong checksum", errIndex)
	}
	return int64(le.Uint64(b[8:])), nil
}

// readIndex reads and decodes the index at path.
func readIndex(path string) (*index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readIndexFile(f)
}

// readIndexFile is decodeIndex for a file, which it does not hold in memory twice.
func readIndexFile(f *os.File) (*index, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	header := make([]byte, indexHeader)
	if _, err := f.ReadAt(header, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	le := binary.LittleEndian
	length := info.Size() - indexHeader
	if string(header[:8]) != indexMagic || le.Uint64(header[24:]) != uint64(length) {
		return nil, fmt.Errorf("%w: no header, or not that of %d bytes", errIndex, info.Size())
	}
	var payload strings.Builder
	payload.Grow(int(length))
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if _, err := io.Copy(io.MultiWriter(&payload, sum), io.NewSectionReader(f, indexHeader, length)); err != nil {
		return nil, err
	}
	if sum.Sum32() != le.Uint32(header[32:]) {
		return nil, fmt.Errorf("%w: wrong checksum", errIndex)
	}
	return parseIndex(int64(le.Uint64(header[8:])), le.Uint64(header[16:]), payload.String())
}

func decodeIndex(b []byte) (*index, error) {
	size, err := checkIndex(b)
	if err != nil {
		return nil, err
	}
	return parseIndex(size, binary.LittleEndian.Uint64(b[16:]), string(b[indexHeader:]))
}

// parseIndex makes sure that the entries are what they should be, so that nobody after it has to.
func parseIndex(size int64, count uint64, payload string) (*index, error) {
	x := &index{size: size, count: int(count), payload: payload}
	// An entry has at least its kind, its length, and two numbers for its path.
	if count > uint64(len(x.payload)/4) {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", errIndex, count, len(x.payload))
	}
	var e entry
	d := decoder{rest: x.payload}
	for range x.count {
		d.entry(&e, true)
	}
	if d.failed || d.rest != "" {
		return nil, fmt.Errorf("%w: entries do not fill it", errIndex)
	}
	return x, nil
}

// entries goes over the entries of these kinds, in the tar's order. Each is good until the next one; its strings
// stay good, and those other than the path keep the whole index in memory.
func (x *index) entries(kinds ...kind) iter.Seq[*entry] {
	var wanted [kindCount]bool
	for _, k := range kinds {
		wanted[k] = true
	}
	return func(yield func(*entry) bool) {
		var e entry
		d := decoder{rest: x.payload}
		for d.rest != "" {
			if k := kind(d.rest[0]); !wanted[k] {
				d.entry(&e, false)
				continue
			}
			d.entry(&e, true)
			e.path = string(d.path)
			if !yield(&e) {
				return
			}
		}
	}
}

// A decoder takes values off the front of rest; strings share its memory. After a value that isn't there
// it has failed, and gives zeros.
type decoder struct {
	rest   string
	failed bool
	path   []byte // of the last entry
}

// entry takes an entry, whose path is in d.path then, or only its path.
func (d *decoder) entry(e *entry, whole bool) {
	if d.rest == "" || d.rest[0] >= byte(kindCount) {
		d.fail()
		return
	}
	e.kind = kind(d.rest[0])
	d.rest = d.rest[1:]
	in := decoder{rest: d.string()}
	shared, suffix := in.uint(), in.string()
	if in.failed || shared > uint64(len(d.path)) {
		d.fail()
		return
	}
	d.path = append(d.path[:shared], suffix...)
	e.suffix, e.link = len(suffix), ""
	if !whole {
		return
	}
	switch e.kind {
	case kindLink:
		e.link, e.inode = in.string(), erofs.Inode{}
	case kindInode, kindDir:
		in.inode(&e.inode)
	default: // whiteouts are only a path
		e.inode = erofs.Inode{}
	}
	if in.failed || in.rest != "" {
		d.fail()
	}
}

func (d *decoder) fail() { d.failed, d.rest = true, "" }

func (d *decoder) inode(n *erofs.Inode) {
	*n = erofs.Inode{
		Mode: uint16(d.uint()),
		UID:  uint32(d.uint()), GID: uint32(d.uint()),
		Mtime: int64(d.uint()), MtimeNsec: uint32(d.uint()),
		Size: d.uint(), Offset: d.uint(),
		Major: uint32(d.uint()), Minor: uint32(d.uint()),
		Target: d.string(),
	}
	count := d.uint()
	if count > uint64(len(d.rest)/2) {
		d.fail()
		return
	}
	if count > 0 {
		n.Xattrs = make([]erofs.Xattr, count)
	}
	for i := range n.Xattrs {
		n.Xattrs[i] = erofs.Xattr{Name: d.string(), Value: d.string()}
	}
	if d.rest == "" {
		return
	}
	n.Sparse = true
	if count = d.uint(); count > uint64(len(d.rest)/3) {
		d.fail()
		return
	}
	n.Extents = make([]erofs.Extent, count)
	for i := range n.Extents {
		n.Extents[i] = erofs.Extent{Start: d.uint(), Size: d.uint(), Offset: d.uint()}
	}
}

func (d *decoder) uint() uint64 {
	var v uint64
	for i := range min(len(d.rest), binary.MaxVarintLen64) {
		c := d.rest[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			d.rest = d.rest[i+1:]
			return v
		}
	}
	d.fail()
	return 0
}

func (d *decoder) string() string {
	n := d.uint()
	if n > uint64(len(d.rest)) {
		d.fail()
		return ""
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}
