// Package imagetest builds container images in memory, for tests: layers from entries that read like a
// listing, config and manifest in OCI's or Docker's form, and a source that serves the blobs and counts
// what it was asked for. It is as willing to build broken images as good ones, and knows nothing of how
// images are stored.
package imagetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"path"
	"time"
)

// An Entry is one entry of a layer. Its methods change a copy.
type Entry struct {
	Header tar.Header
	Body   []byte

	// Raw, when set, is the whole entry, in blocks of 512 bytes, and goes into the archive as it is.
	Raw []byte
}

// When is the time stamp of entries that set none.
func When() time.Time { return time.Unix(1700000000, 0) }

func entry(kind byte, name string, mode int64) Entry {
	return Entry{Header: tar.Header{
		Typeflag: kind, Name: name, Mode: mode, ModTime: When(), Format: tar.FormatPAX,
	}}
}

// Dir is a directory, 0755.
func Dir(name string) Entry { return entry(tar.TypeDir, name, 0o755) }

// File is a regular file, 0644.
func File(name, content string) Entry {
	e := entry(tar.TypeReg, name, 0o644)
	e.Body = []byte(content)
	e.Header.Size = int64(len(content))
	return e
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	e := entry(tar.TypeSymlink, name, 0o777)
	e.Header.Linkname = target
	return e
}

// Link is a hard link.
func Link(name, target string) Entry {
	e := entry(tar.TypeLink, name, 0o644)
	e.Header.Linkname = target
	return e
}

// Char is a character device.
func Char(name string, major, minor int64) Entry {
	e := entry(tar.TypeChar, name, 0o666)
	e.Header.Devmajor, e.Header.Devminor = major, minor
	return e
}

// Block is a block device.
func Block(name string, major, minor int64) Entry {
	e := Char(name, major, minor)
	e.Header.Typeflag = tar.TypeBlock
	return e
}

// FIFO is a named pipe.
func FIFO(name string) Entry { return entry(tar.TypeFifo, name, 0o644) }

// Whiteout hides name in the layers below.
func Whiteout(name string) Entry {
	return File(path.Join(path.Dir(name), ".wh."+path.Base(name)), "")
}

// Opaque hides everything in dir in the layers below.
func Opaque(dir string) Entry { return File(path.Join(dir, ".wh..wh..opq"), "") }

// Mode sets the permission bits, with the set-id and sticky bits.
func (e Entry) Mode(mode int64) Entry {
	e.Header.Mode = mode
	return e
}

// Owner sets user and group.
func (e Entry) Owner(uid, gid int) Entry {
	e.Header.Uid, e.Header.Gid = uid, gid
	return e
}

// Time sets the time stamp.
func (e Entry) Time(t time.Time) Entry {
	e.Header.ModTime = t
	return e
}

// Xattr adds an extended attribute.
func (e Entry) Xattr(name, value string) Entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	maps.Copy(records, e.Header.PAXRecords)
	e.Header.PAXRecords = records
	return e
}

// Tar is the archive of the entries. It panics on a header that archive/tar cannot write: a test that
// needs one edits the bytes.
func Tar(entries ...Entry) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if e.Raw != nil {
			if err := w.Flush(); err != nil {
				panic(fmt.Sprintf("entry before %q: %v", e.Header.Name, err))
			}
			out.Write(e.Raw)
			continue
		}
		h := e.Header
		if err := w.WriteHeader(&h); err != nil {
			panic(fmt.Sprintf("entry %q: %v", h.Name, err))
		}
		if _, err := w.Write(e.Body); err != nil {
			panic(fmt.Sprintf("entry %q: %v", h.Name, err))
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}
