package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A tap reads a tar in long pieces, of which each is hashed and written before the parser sees a byte of it.
// It implements io.Seeker so that archive/tar steps over contents instead of copying them.
type tap struct {
	src   pieces
	dst   sink
	hash  hash.Hash
	limit int64
	cur   []byte // not yet consumed
	pos   int64  // consumed
	total int64  // read, hashed and written
	err   error
}

// A sink takes pieces, each after room was made for all up to its end.
type sink interface {
	reserve(total int64) error
	write(data []byte, again int) error
	finish() error
}

func newTap(src pieces, dst sink, limit int64) *tap {
	return &tap{src: src, dst: dst, hash: sha256.New(), limit: limit}
}

// fill takes the next piece. At the end of the stream it returns io.EOF.
func (t *tap) fill() error {
	if t.err != nil {
		return t.err
	}
	data, again, err := t.src.next()
	if err == nil {
		err = t.take(data, again)
	}
	if errors.Is(err, io.EOF) {
		if err := t.dst.finish(); err != nil {
			t.err = fmt.Errorf("write layer: %w", err)
			return t.err
		}
	}
	t.err = err
	return err
}

func (t *tap) take(data []byte, again int) error {
	if t.total += int64(len(data) - again); t.total > t.limit {
		return refuse("has more than %d bytes uncompressed", t.limit)
	}
	if err := t.dst.reserve(t.total); err != nil {
		return err
	}
	t.hash.Write(data[again:])
	if err := t.dst.write(data, again); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	t.cur = data[again:]
	return nil
}

// consume takes n bytes, which cur has.
func (t *tap) consume(n int) {
	t.cur = t.cur[n:]
	t.pos += int64(n)
}

func (t *tap) Read(p []byte) (int, error) {
	if len(t.cur) == 0 {
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.cur)
	t.cur = t.cur[n:]
	t.pos += int64(n)
	return n, nil
}

// Seek goes forward from where it is, as far as the stream goes.
func (t *tap) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return t.pos, errors.New("a stream goes forward only")
	}
	for offset > 0 {
		if len(t.cur) == 0 {
			if err := t.fill(); errors.Is(err, io.EOF) {
				return t.pos, io.ErrUnexpectedEOF
			} else if err != nil {
				return t.pos, err
			}
		}
		n := min(offset, int64(len(t.cur)))
		t.cur = t.cur[n:]
		t.pos += n
		offset -= n
	}
	return t.pos, nil
}

// drain reads to the end of the stream.
func (t *tap) drain() error {
	for {
		t.pos += int64(len(t.cur))
		t.cur = nil
		if err := t.fill(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// scan reads the tar of the layer diffID from src, writes it unchanged to dst, and lists its entries. What
// it wrote is the layer only when it returns no error. The entries go to idx, or into what it returns when that
// is nil. It leaves in at how far it is.
func scan(src pieces, dst sink, idx *indexFile, diffID string, limits Limits, at *notes) (*index, error) {
	t := newTap(src, dst, limits.LayerBytes)
	s := scanner{tap: t, raw: rawHeaders{tap: t}, limits: limits, list: indexWriter{file: idx}, at: at}
	if err := s.entries(); err != nil {
		return nil, err
	}
	// What follows the end of the archive means nothing for the tree, but belongs to the layer's bytes.
	if err := t.drain(); err != nil {
		return nil, err
	}
	if got := digestPrefix + hex.EncodeToString(t.hash.Sum(nil)); got != diffID {
		return nil, refuse("uncompressed bytes are %s, but the config's rootfs.diff_ids says %s", got, diffID)
	}
	if s.end > t.total {
		return nil, refuse("tar ends within the padding of its last file")
	}
	if t.total < sectorSize {
		return nil, refuse("has %d bytes uncompressed, which is no tar", t.total)
	}
	if idx != nil {
		if err := s.list.finish(t.total); err != nil {
			return nil, fmt.Errorf("write index: %w", err)
		}
	}
	return s.list.index(t.total), nil
}

// onEntry is how a test has a confined process fail.
var onEntry func(name string)

type scanner struct {
	tap      *tap
	raw      rawHeaders
	limits   Limits
	list     indexWriter
	names    int64
	declared int64 // sizes of sparse files
	content  int64 // where that of the last file ends
	end      int64 // the same, padded: where the next header begins
	header   tar.Header
	slow     bool // leave all headers to archive/tar: for a test
	at       *notes
}

func (s *scanner) entries() error {
	last := ""
	for count := 1; ; count++ {
		h, err := s.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return s.malformed(err, last)
		}
		last = h.Name
		s.at.setEntry(last)
		if onEntry != nil {
			onEntry(last)
		}
		if count > s.limits.Entries {
			return refuse("has more than %d entries", s.limits.Entries)
		}
		if err := s.add(h); err != nil {
			return fmt.Errorf("entry %s: %w", quote(h.Name), err)
		}
	}
}

// next reads the header of the next entry. It is good until the one after it.
func (s *scanner) next() (*tar.Header, error) {
	if err := s.skip(); err != nil {
		return nil, err
	}
	s.raw.expect(s.end)
	if block := s.tap.cur; len(block) >= sectorSize && plainHeader(block[:sectorSize], &s.header) && !s.slow {
		s.tap.consume(sectorSize)
		s.raw.found(block[:sectorSize])
		return &s.header, nil
	}
	// A reader of its own, which knows nothing of the entry before and so does not skip its content again.
	return tar.NewReader(&s.raw).Next()
}

// skip goes to where the next header begins. Where only padding is missing the archive has ended, and scan finds
// that it has not ended well.
func (s *scanner) skip() error {
	if _, err := s.tap.Seek(max(0, s.content-s.tap.pos), io.SeekCurrent); err != nil {
		return err
	}
	_, err := s.tap.Seek(max(0, s.end-s.tap.pos), io.SeekCurrent)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// malformed tells a tar that is not one from a stream that failed.
func (s *scanner) malformed(err error, last string) error {
	if s.tap.err != nil && !errors.Is(s.tap.err, io.EOF) {
		return s.tap.err
	}
	if last == "" {
		return refuse("not a tar: %w", err)
	}
	return refuse("not a tar after the entry %s, near byte %d: %w", quote(last), s.tap.pos, err)
}

func (s *scanner) add(h *tar.Header) error {
	offset := s.tap.pos
	size, err := s.raw.contentSize(h)
	if err != nil {
		return err
	}
	if h.Size < 0 || h.Size > s.limits.LayerBytes-offset || size > s.limits.LayerBytes-offset {
		return refuse("declares %d bytes, and a layer may have %d", max(h.Size, size), s.limits.LayerBytes)
	}
	s.content = s.raw.header + size
	s.end = alignTo(s.content, sectorSize)
	if h.Typeflag == tar.TypeGNUSparse {
		return refuse("is a sparse file in GNU tar's old form: make the archive with --format=pax, or without --sparse")
	}
	e, err := newEntry(h, offset)
	if err != nil || e == nil {
		return err
	}
	if isSparse(h) && e.kind == kindInode {
		if s.declared += h.Size; s.declared > s.limits.LayerBytes {
			return refuse("declares %d bytes of sparse files with those before it, and a layer may have %d", s.declared, s.limits.LayerBytes)
		}
		if err := s.setExtents(&e.inode, h, size); err != nil {
			return err
		}
	}
	e.suffix = len(e.path) - s.list.shared(e.path)
	if s.names += e.nameBytes(); s.names > s.limits.names(s.list.count) {
		return refuse("is where names and attributes exceed %d bytes", s.limits.names(s.list.count))
	}
	s.list.add(e)
	return nil
}
