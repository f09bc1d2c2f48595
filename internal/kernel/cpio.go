package kernel

import (
	"bytes"
	"fmt"
)

// archive writes a cpio archive in the "newc" format, which the kernel unpacks as its first root. Equal
// calls make equal bytes: no times, owner root, inode numbers counted from one.
type archive struct {
	buf bytes.Buffer
	ino int
}

// File types of the mode field.
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
)

func (a *archive) dir(name string) { a.header(name, typeDir|0o755, 0, 0, 0) }

func (a *archive) char(name string, perm uint32, major, minor int) {
	a.header(name, typeChar|perm, 0, major, minor)
}

func (a *archive) file(name string, perm uint32, data []byte) {
	a.header(name, typeFile|perm, len(data), 0, 0)
	a.buf.Write(data)
	a.pad(4)
}

// finish ends the archive and returns its bytes.
func (a *archive) finish() []byte {
	a.ino = -1 // the trailer has inode 0
	a.header("TRAILER!!!", 0, 0, 0, 0)
	a.pad(512)
	return a.buf.Bytes()
}

func (a *archive) header(name string, mode uint32, size, major, minor int) {
	a.ino++
	const uid, gid, links, mtime, devMajor, devMinor, checksum = 0, 0, 1, 0, 0, 0, 0
	a.buf.WriteString("070701")
	for _, field := range []int{
		a.ino, int(mode), uid, gid, links, mtime, size, devMajor, devMinor, major, minor, len(name) + 1, checksum,
	} {
		fmt.Fprintf(&a.buf, "%08x", field)
	}
	a.buf.WriteString(name)
	a.buf.WriteByte(0)
	a.pad(4)
}

func (a *archive) pad(to int) {
	for a.buf.Len()%to != 0 {
		a.buf.WriteByte(0)
	}
}
