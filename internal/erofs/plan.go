package erofs

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Data layouts of an inode (EROFS_INODE_*).
const (
	layoutPlain  = 0 // data in whole blocks of its own
	layoutInline = 2 // the last, partial block follows the inode
	layoutChunks = 4 // data in devices, found by the chunk index that follows the inode
)

const (
	inodeSize  = 64 // an extended inode: the compact one has no mtime
	slotSize   = 32 // unit of a nid
	chunkIndex = 8  // size and alignment of a chunk index
)

// A plan says where everything goes before anything is written: inodes name the positions of others.
type plan struct {
	opts      Options
	blockBits int

	order     []*Inode // breadth first, directories' names sorted; the root is first
	metaBlock uint64   // first block of the inode area
	dataBlock uint64   // first block after it: plain data
	endBlock  uint64
}

// collect lists the inodes that are reachable from root and checks each.
func (p *plan) collect(root *Inode) error {
	if root == nil || root.Mode&TypeMask != TypeDir {
		return errors.New("root is not a directory")
	}
	if err := p.check(root); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	p.add(root, root)
	for i := 0; i < len(p.order); i++ {
		dir := p.order[i]
		if dir.Mode&TypeMask != TypeDir {
			continue
		}
		dir.names = make([]string, 0, len(dir.Children)+2)
		for name := range dir.Children {
			if err := checkName(name); err != nil {
				return fmt.Errorf("%s: %w", pathOf(dir, name), err)
			}
			dir.names = append(dir.names, name)
		}
		slices.Sort(dir.names)
		for _, name := range dir.names {
			if err := p.addChild(dir, dir.Children[name]); err != nil {
				return fmt.Errorf("%s: %w", pathOf(dir, name), err)
			}
		}
		// "." and ".." are entries like any other, and a name may sort before them.
		dir.names = append(dir.names, ".", "..")
		slices.Sort(dir.names)
	}
	return nil
}

func (p *plan) addChild(dir, child *Inode) error {
	if child == nil {
		return errors.New("no inode for this name")
	}
	known := child.ino > 0 && int(child.ino) <= len(p.order) && p.order[child.ino-1] == child
	isDir := child.Mode&TypeMask == TypeDir
	switch {
	case known && isDir:
		return errors.New("a directory can have only one name")
	case known:
		child.nlink++
		return nil
	}
	if err := p.check(child); err != nil {
		return err
	}
	if len(p.order) == math.MaxUint32 {
		return errors.New("more inodes than 32 bits can number")
	}
	p.add(dir, child)
	if isDir {
		dir.nlink++
	}
	return nil
}

func (p *plan) add(parent, n *Inode) {
	p.order = append(p.order, n)
	n.parent, n.ino, n.nlink, n.names = parent, uint32(len(p.order)), 1, nil
	if n.Mode&TypeMask == TypeDir {
		n.nlink = 2
	}
}

// check says why n cannot be written.
func (p *plan) check(n *Inode) error {
	if n.MtimeNsec >= 1e9 {
		return fmt.Errorf("mtime: %d nanoseconds, want less than a second", n.MtimeNsec)
	}
	if err := checkXattrs(n.Xattrs); err != nil {
		return err
	}
	switch n.Mode & TypeMask {
	case TypeDir, TypeFIFO, TypeSocket:
		return nil
	case TypeChar, TypeBlock:
		if n.Major > MaxMajor || n.Minor > MaxMinor {
			return fmt.Errorf("device number %d:%d: at most %d:%d", n.Major, n.Minor, MaxMajor, MaxMinor)
		}
		return nil
	case TypeSymlink:
		if n.Target == "" || len(n.Target) > MaxTarget || strings.IndexByte(n.Target, 0) >= 0 {
			return fmt.Errorf("symbolic link: target of %d bytes, want 1 to %d without NUL", len(n.Target), MaxTarget)
		}
		return nil
	case TypeRegular:
		return p.checkContent(n)
	default:
		return fmt.Errorf("mode %#o: unknown file type", n.Mode)
	}
}

func (p *plan) checkContent(n *Inode) error {
	if n.Size == 0 {
		return nil
	}
	if n.Slot == 0 || int(n.Slot) > len(p.opts.Devices) {
		return fmt.Errorf("device slot %d: there are %d", n.Slot, len(p.opts.Devices))
	}
	block := uint64(p.opts.BlockSize)
	if n.Offset%block != 0 {
		return fmt.Errorf("offset %d is not a multiple of the block size %d", n.Offset, block)
	}
	device := uint64(max(p.opts.Devices[n.Slot-1].Size, 0))
	if n.Offset > device || n.Size > device-n.Offset || alignUp(n.Size, block) > device-n.Offset {
		return fmt.Errorf("%d bytes at %d do not lie within device %d of %d bytes", n.Size, n.Offset, n.Slot, device)
	}
	// One chunk index per file: 2^31 blocks are 1 TiB at 512 bytes.
	if n.Size > block<<maxChunkBits {
		return fmt.Errorf("%d bytes: a file has at most %d", n.Size, block<<maxChunkBits)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > MaxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("name %q cannot be in a directory", name[:min(len(name), MaxName)])
	}
	return nil
}

// place gives every inode its nid and every directory or link that doesn't fit beside its inode its blocks.
func (p *plan) place() error {
	block := uint64(p.opts.BlockSize)
	p.metaBlock = alignUp(superOffset+superSize+deviceSize*uint64(len(p.opts.Devices)), block) / block
	var pos, data uint64
	for _, n := range p.order {
		head := inodeSize + xattrSize(n.Xattrs)
		content, tail := p.content(n), uint64(0)
		n.layout = layoutPlain
		switch {
		case n.Mode&TypeMask == TypeRegular && n.Size > 0:
			n.layout = layoutChunks
			head, tail = alignUp(head, chunkIndex), chunkIndex
		case content%block != 0 && head+content%block <= block:
			n.layout = layoutInline
			tail = content % block
			content -= tail
		}
		pos = alignUp(pos, slotSize)
		// The kernel refuses inline data that crosses a block.
		if n.layout == layoutInline && pos%block+head+tail > block {
			pos = alignUp(pos, block)
		}
		n.nid = pos / slotSize
		pos += head + tail
		n.block = uint32(data)
		data += alignUp(content, block) / block
	}
	p.dataBlock = p.metaBlock + alignUp(pos, block)/block
	p.endBlock = p.dataBlock + data
	if p.endBlock > math.MaxUint32 {
		return fmt.Errorf("metadata takes %d blocks, more than 32 bits can number", p.endBlock)
	}
	for _, n := range p.order {
		n.block += uint32(p.dataBlock)
	}
	return nil
}

// content is the size of what an inode holds in this image itself.
func (p *plan) content(n *Inode) uint64 {
	switch n.Mode & TypeMask {
	case TypeDir:
		return dirSize(n.names, p.opts.BlockSize)
	case TypeSymlink:
		return uint64(len(n.Target))
	default:
		return 0
	}
}

// release drops what the plan keeps in the tree.
func (p *plan) release() {
	for _, n := range p.order {
		n.names, n.parent = nil, nil
	}
}

// pathOf is for messages.
func pathOf(dir *Inode, name string) string {
	path := name
	for dir.parent != nil && dir.parent != dir {
		for sibling, n := range dir.parent.Children {
			if n == dir {
				path = sibling + "/" + path
			}
		}
		dir = dir.parent
	}
	return fmt.Sprintf("%q", path)
}
