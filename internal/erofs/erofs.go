// Package erofs writes metadata-only EROFS images: a whole directory tree whose file contents lie in other
// block devices, at offsets that the caller knows. For a container image those are its layers' tars, so a
// root file system exists without a byte of a file having been copied.
//
// The format is Linux's (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h), of which the package
// uses extended inodes, inline and plain directories and symbolic links, inline extended attributes, chunk
// indexes and the device table: kernel 6.4 and later mounts it with 512-byte blocks. It compresses nothing,
// reads nothing, does no I/O but the io.Writer, and knows nothing of layers, tars or whiteouts.
//
// The same tree and options give the same bytes, always.
package erofs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// File types in Inode.Mode, as in stat(2).
const (
	TypeMask    = 0xf000
	TypeFIFO    = 0x1000
	TypeChar    = 0x2000
	TypeDir     = 0x4000
	TypeBlock   = 0x6000
	TypeRegular = 0x8000
	TypeSymlink = 0xa000
	TypeSocket  = 0xc000
)

// Bounds of the format, or of the kernel that reads it.
const (
	MaxName      = 255       // bytes of a name in a directory
	MaxTarget    = 4095      // bytes of a symbolic link's target
	MaxXattrName = 255       // bytes of an attribute's name after its namespace
	MaxXattr     = 1<<16 - 1 // bytes of an attribute's value
	MaxXattrs    = 256 << 10 // bytes of all attributes of one inode, encoded
	MaxMajor     = 1<<12 - 1
	MaxMinor     = 1<<20 - 1
	TagSize      = 64 // bytes of a device's tag
)

// An Inode is what a Tree is told of one object, and tells.
type Inode struct {
	Mode      uint16 // type and permission bits
	UID, GID  uint32
	Mtime     int64  // seconds since 1970
	MtimeNsec uint32 // below 1e9

	// Regular files: Size bytes at Offset, a multiple of the block size, in device Slot, counted from 1 in
	// Options.Devices. An empty file needs none. With Sparse, only the Extents are there, and the rest of
	// the Size bytes reads as zeros.
	Size    uint64
	Offset  uint64
	Slot    uint16
	Sparse  bool
	Extents []Extent

	Major, Minor uint32  // character and block devices
	Target       string  // symbolic links
	Xattrs       []Xattr // sorted by name
}

// An Extent is a part of a sparse file: Size bytes from Start on are at Offset in the file's device. Extents
// are sorted and do not overlap. All numbers are multiples of the block size, but for the Size of an extent
// that ends with the file.
type Extent struct {
	Start, Size, Offset uint64
}

// An Xattr is an extended attribute with its whole name, "user.comment".
type Xattr struct {
	Name, Value string
}

// A Device is a block device that holds file contents.
type Device struct {
	Tag  string // at most TagSize bytes, not empty
	Size int64  // bytes; what is beyond the last whole block is not addressable
}

// Options are what an image has beside its tree.
type Options struct {
	BlockSize int // a power of two from 512 to 4096; 0 means 512
	UUID      [16]byte
	Devices   []Device
}

// Write writes the image of a tree. The tree is checked first: when it cannot be expressed, nothing has been
// written. Every other error is w's. The tree can be changed and written again.
func Write(w io.Writer, t *Tree, opts Options) error {
	if opts.BlockSize == 0 {
		opts.BlockSize = 512
	}
	if n := opts.BlockSize; n < 512 || n > 4096 || n&(n-1) != 0 {
		return fmt.Errorf("block size %d: want a power of two from 512 to 4096", n)
	}
	p := plan{tree: t, opts: opts, blockBits: bits.TrailingZeros(uint(opts.BlockSize))}
	if err := p.collect(); err != nil {
		return err
	}
	if err := p.place(); err != nil {
		return err
	}
	out := &writer{w: bufio.NewWriterSize(w, 256<<10)}
	if err := p.writeSuper(out); err != nil {
		return err
	}
	p.writeInodes(out)
	p.writeData(out)
	return out.flush()
}

// A writer counts, pads, and remembers the first error, so that the encoders read as a list of fields.
type writer struct {
	w     *bufio.Writer
	pos   uint64
	err   error
	zeros [4096]byte
}

func (o *writer) bytes(b []byte) {
	if o.err != nil {
		return
	}
	n, err := o.w.Write(b)
	o.pos += uint64(n)
	o.err = err
}

func (o *writer) string(s string) {
	if o.err != nil {
		return
	}
	n, err := o.w.WriteString(s)
	o.pos += uint64(n)
	o.err = err
}

// padTo writes zeros up to the absolute position pos.
func (o *writer) padTo(pos uint64) {
	for o.err == nil && o.pos < pos {
		o.bytes(o.zeros[:min(pos-o.pos, uint64(len(o.zeros)))])
	}
	if o.err == nil && o.pos > pos {
		o.err = errors.New("erofs: wrote past the planned position")
	}
}

func (o *writer) flush() error {
	if o.err != nil {
		return o.err
	}
	return o.w.Flush()
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
