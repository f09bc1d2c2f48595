package erofs

import (
	"fmt"
	"strings"
)

// check says why an inode cannot be written.
func (p *plan) check(id Node) error {
	r := p.at(id)
	if r.nsec >= 1e9 {
		return fmt.Errorf("mtime: %d nanoseconds, want less than a second", r.nsec)
	}
	if err := checkXattrs(p.xattrs(r)); err != nil {
		return err
	}
	switch r.mode & TypeMask {
	case TypeDir, TypeFIFO, TypeSocket:
		return nil
	case TypeChar, TypeBlock:
		if major, minor := r.b>>32, uint32(r.b); major > MaxMajor || minor > MaxMinor {
			return fmt.Errorf("device number %d:%d: at most %d:%d", major, minor, MaxMajor, MaxMinor)
		}
		return nil
	case TypeSymlink:
		if r.a == 0 || r.a > MaxTarget || strings.IndexByte(p.tree.target(r), 0) >= 0 {
			return fmt.Errorf("symbolic link: target of %d bytes, want 1 to %d without NUL", r.a, MaxTarget)
		}
		return nil
	case TypeRegular:
		return p.checkContent(p.tree.Inode(id))
	default:
		return fmt.Errorf("mode %#o: unknown file type", r.mode)
	}
}

func (p *plan) checkContent(n Inode) error {
	if n.Size == 0 && len(n.Extents) == 0 {
		return nil
	}
	if n.Slot == 0 || int(n.Slot) > len(p.opts.Devices) {
		return fmt.Errorf("device slot %d: there are %d", n.Slot, len(p.opts.Devices))
	}
	// 2^31 blocks are 1 TiB at 512 bytes: what one chunk index of a file can hold.
	if limit := uint64(p.opts.BlockSize) << maxChunkBits; n.Size > limit {
		return fmt.Errorf("%d bytes: a file has at most %d", n.Size, limit)
	}
	if !n.Sparse {
		return p.checkExtent(n, Extent{Size: n.Size, Offset: n.Offset})
	}
	end := uint64(0)
	for _, e := range n.Extents {
		if e.Start < end || e.Size == 0 || e.Size > n.Size || e.Start > n.Size-e.Size {
			return fmt.Errorf("the part of %d bytes at %d overlaps another one or the end at %d", e.Size, e.Start, n.Size)
		}
		end = e.Start + e.Size
		if err := p.checkExtent(n, e); err != nil {
			return err
		}
	}
	if count := p.sparseChunks(n).count; count > MaxChunks {
		return fmt.Errorf("the parts of the file need an index of %d chunks, at most %d", count, MaxChunks)
	}
	return nil
}

// checkExtent says whether a part of a file lies where blocks can name it.
func (p *plan) checkExtent(n Inode, e Extent) error {
	block := uint64(p.opts.BlockSize)
	if e.Offset%block != 0 {
		return fmt.Errorf("offset %d is not a multiple of the block size %d", e.Offset, block)
	}
	if e.Start%block != 0 || e.Size%block != 0 && e.Start+e.Size != n.Size {
		return fmt.Errorf("the part of %d bytes at %d is not made of blocks of %d", e.Size, e.Start, block)
	}
	device := uint64(max(p.opts.Devices[n.Slot-1].Size, 0))
	if e.Offset > device || e.Size > device-e.Offset || alignUp(e.Size, block) > device-e.Offset {
		return fmt.Errorf("%d bytes at %d do not lie within device %d of %d bytes", e.Size, e.Offset, n.Slot, device)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > MaxName ||
		strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("name %q cannot be in a directory", name[:min(len(name), MaxName)])
	}
	return nil
}
