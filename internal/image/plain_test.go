package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// allPieces gives all there is in one piece.
type allPieces struct{ rest []byte }

func (a *allPieces) next() (data []byte, again int, err error) {
	if data = a.rest; len(data) == 0 {
		return nil, 0, io.EOF
	}
	a.rest = nil
	return data, 0, nil
}

// scanSlowly leaves every header to archive/tar.
func scanSlowly(b []byte, limits Limits) (*index, error) {
	t := newTap(&allPieces{b}, nowhere{new(notes)}, limits.LayerBytes)
	s := scanner{tap: t, raw: rawHeaders{tap: t}, limits: limits, at: new(notes), slow: true}
	if err := s.entries(); err != nil {
		return nil, err
	}
	return s.list.index(s.end), t.drain()
}

func scanFast(b []byte, limits Limits) (*index, error) {
	t := newTap(&allPieces{b}, nowhere{new(notes)}, limits.LayerBytes)
	s := scanner{tap: t, raw: rawHeaders{tap: t}, limits: limits, at: new(notes)}
	if err := s.entries(); err != nil {
		return nil, err
	}
	return s.list.index(s.end), t.drain()
}

// one reads all headers by one reader of archive/tar, as it is meant to be used, and steps over contents.
func one(b []byte) (list []tar.Header, err error) {
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err != nil {
			return list, err
		}
		list = append(list, *h)
	}
}

func each(b []byte, slow bool) (list []tar.Header, err error) {
	t := newTap(&allPieces{b}, nowhere{new(notes)}, 1<<40)
	s := scanner{tap: t, raw: rawHeaders{tap: t}, at: new(notes), slow: slow}
	for {
		h, err := s.next()
		if err != nil {
			return list, err
		}
		list = append(list, *h)
		size, err := s.raw.contentSize(h)
		if err != nil {
			return list, err
		}
		s.content = s.raw.header + size
		s.end = alignTo(s.content, sectorSize)
	}
}

// FuzzPlainHeader compares what plain headers are read as with what archive/tar reads.
func FuzzPlainHeader(f *testing.F) {
	for _, c := range imagetest.Corpus() {
		for _, entries := range c.Layers {
			if b := imagetest.Tar(entries...); len(b) < 16<<10 {
				f.Add(b)
			}
		}
	}
	f.Add(imagetest.Tar(imagetest.File(strings.Repeat("long/", 30)+"name", "1"), imagetest.Dir("d"), imagetest.Link("l", "d/x")))
	limits := Limits{LayerBytes: 1 << 20, Entries: 500, NameBytes: 1 << 16}.withDefaults()
	f.Fuzz(func(t *testing.T, b []byte) {
		b = fixChecksums(b)
		comparePlain(t, b)
		fast, fastErr := scanFast(b, limits)
		slow, slowErr := scanSlowly(b, limits)
		if errorText(fastErr) != errorText(slowErr) {
			t.Fatalf("fast: %v\nslow: %v", fastErr, slowErr)
		}
		if fastErr == nil && !bytes.Equal(fast.encode(), slow.encode()) {
			t.Fatal("entries differ")
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// comparePlain compares the two ways, and archive/tar's own.
func comparePlain(t *testing.T, b []byte) {
	t.Helper()
	fast, fastErr := each(b, false)
	slow, slowErr := each(b, true)
	whole, wholeErr := one(b)
	ended := errors.Is(wholeErr, io.EOF) && errors.Is(fastErr, io.EOF)
	if errorText(fastErr) != errorText(slowErr) || ended && len(fast) != len(whole) {
		t.Fatalf("fast: %d entries, %v\nslow: %d entries, %v\narchive/tar: %d entries, %v", len(fast), fastErr, len(slow), slowErr, len(whole), wholeErr)
	}
	for i := range fast {
		f, s := fast[i], slow[i]
		if f.Typeflag != s.Typeflag || f.Name != s.Name || f.Linkname != s.Linkname || f.Mode != s.Mode || f.Uid != s.Uid || f.Gid != s.Gid ||
			f.Size != s.Size || !f.ModTime.Equal(s.ModTime) || len(f.PAXRecords) != len(s.PAXRecords) {
			t.Fatalf("entry %d\nfast: %+v\nslow: %+v", i, f, s)
		}
		if ended && whole[i].Name != f.Name {
			t.Fatalf("entry %d is %q, archive/tar has %q", i, f.Name, whole[i].Name)
		}
	}
}

// The headers that writers make are plain, and those that are not are known as such.
func TestPlainHeader(t *testing.T) {
	when := time.Unix(1700000000, 0)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "usr/bin/env", Mode: 0o4755, Uid: 5, Gid: 6, ModTime: when},
		{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755, ModTime: when},
		{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777, ModTime: when},
		{Typeflag: tar.TypeLink, Name: "a", Linkname: "b", ModTime: when},
		{Typeflag: tar.TypeReg, Name: strings.Repeat("d/", 90) + "file", ModTime: when},
	} {
		b := written(t, h)
		if !plainHeader(b[:512], new(tar.Header)) {
			t.Errorf("%s is not plain", h.Name)
		}
		comparePlain(t, b)
		// One bit after the other: none may make it what archive/tar does not think it is.
		for i := range 8 * 512 {
			c := bytes.Clone(b)
			c[i/8] ^= 1 << (i % 8)
			comparePlain(t, c)
			comparePlain(t, imagetest.Checksum(c[:512:512]))
		}
	}
}

func written(t *testing.T, h *tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(h), w.Close()); err != nil {
		t.Skipf("%s: %v", h.Name, err)
	}
	return b.Bytes()
}
