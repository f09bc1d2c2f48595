package erofs

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Data layouts of an inode (EROFS_INODE_*).
const (
	layoutPlain  = 0 // data in whole blocks of its own
	layoutInline = 2 // the last, partial block follows the inode
	layoutChunks = 4 // data in devices, found by the chunk indexes that follow the inode
)

const (
	inodeSize  = 64 // an extended inode: the compact one has no mtime
	slotSize   = 32 // unit of a nid
	chunkIndex = 8  // size and alignment of a chunk index
)

// A plan says where everything goes before anything is written: inodes name the positions of others.
type plan struct {
	tree      *Tree
	opts      Options
	blockBits int

	order  []Node   // breadth first, directories' names sorted; the root is first
	sorted []uint32 // names of the directories of order, one directory after the other, each ended by a 0
	listed []name   // of one directory; see names

	metaBlock uint64 // first block of the inode area
	dataBlock uint64 // first block after it: plain data
	endBlock  uint64
}

func (p *plan) at(n Node) *record { return p.tree.inodes.at(uint32(n)) }

// collect lists the inodes that are reachable from the root and checks each.
func (p *plan) collect() error {
	t := p.tree
	for i := range t.inodes.count {
		t.inodes.at(i).ino = 0
	}
	if !t.IsDir(Root) {
		return fmt.Errorf("root is not a directory")
	}
	if err := p.check(Root); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	p.order = make([]Node, 0, t.inodes.count)
	p.sorted = make([]uint32, 0, t.names.count)
	p.add(Root, Root)
	for i := 0; i < len(p.order); i++ {
		dir := p.order[i]
		r := p.at(dir)
		if r.mode&TypeMask != TypeDir {
			continue
		}
		first := len(p.sorted)
		r.setFirst(uint32(first))
		for place := r.last(); place != 0; place = t.names.at(place).next {
			if t.names.at(place).node != 0 {
				p.sorted = append(p.sorted, place)
			}
		}
		names := p.sorted[first:]
		slices.Reverse(names) // into the order in which they were made, which often is the one wanted
		slices.SortFunc(names, func(a, b uint32) int { return strings.Compare(t.name(t.names.at(a)), t.name(t.names.at(b))) })
		for _, place := range names {
			d := t.names.at(place)
			if err := p.addChild(dir, d); err != nil {
				return fmt.Errorf("%s: %w", p.pathOf(dir, t.name(d)), err)
			}
		}
		p.sorted = append(p.sorted, 0)
	}
	return nil
}

func (p *plan) addChild(dir Node, d *dirent) error {
	if err := checkName(p.tree.name(d)); err != nil {
		return err
	}
	r := p.at(d.node)
	isDir := r.mode&TypeMask == TypeDir
	switch {
	case r.ino > 0 && isDir:
		return fmt.Errorf("a directory can have only one name")
	case r.ino > 0:
		r.nlink++
		return nil
	}
	if err := p.check(d.node); err != nil {
		return err
	}
	p.add(dir, d.node)
	if isDir {
		p.at(dir).nlink++
	}
	return nil
}

func (p *plan) add(parent, n Node) {
	p.order = append(p.order, n)
	r := p.at(n)
	r.ino, r.nlink = uint32(len(p.order)), 1
	if r.mode&TypeMask == TypeDir {
		r.nlink = 2
		r.setParent(parent)
	}
}

// A name is an entry of a directory, as it is written.
type name struct {
	text string
	node Node
}

// names lists a directory, sorted, with "." and "..", which are entries like any other: a name may sort before
// them. The list is good until the next call.
func (p *plan) names(dir Node) []name {
	r := p.at(dir)
	p.listed = p.listed[:0]
	dots := []name{{".", dir}, {"..", r.parent()}}
	for _, place := range p.sorted[r.first():] {
		if place == 0 {
			break
		}
		d := p.tree.names.at(place)
		text := p.tree.name(d)
		for len(dots) > 0 && dots[0].text < text {
			p.listed = append(p.listed, dots[0])
			dots = dots[1:]
		}
		p.listed = append(p.listed, name{text, d.node})
	}
	p.listed = append(p.listed, dots...)
	return p.listed
}

// place gives every inode its nid and every directory or link that doesn't fit beside its inode its blocks.
func (p *plan) place() error {
	block := uint64(p.opts.BlockSize)
	p.metaBlock = alignUp(superOffset+superSize+deviceSize*uint64(len(p.opts.Devices)), block) / block
	var pos, data uint64
	for _, n := range p.order {
		r := p.at(n)
		head := inodeSize + xattrSize(p.xattrs(r))
		content, tail := p.content(n), uint64(0)
		r.layout = layoutPlain
		switch {
		case r.mode&TypeMask == TypeRegular && r.a > 0:
			r.layout = layoutChunks
			head, tail = alignUp(head, chunkIndex), chunkIndex*p.chunks(r).count
		case content%block != 0 && head+content%block <= block:
			r.layout = layoutInline
			tail = content % block
			content -= tail
		}
		pos = alignUp(pos, slotSize)
		// The kernel refuses inline data that crosses a block.
		if r.layout == layoutInline && pos%block+head+tail > block {
			pos = alignUp(pos, block)
		}
		if pos/slotSize > math.MaxUint32 {
			return fmt.Errorf("inodes take more than %d bytes", uint64(math.MaxUint32)*slotSize)
		}
		r.nid = uint32(pos / slotSize)
		pos += head + tail
		r.block = uint32(data)
		data += alignUp(content, block) / block
	}
	p.dataBlock = p.metaBlock + alignUp(pos, block)/block
	p.endBlock = p.dataBlock + data
	if p.endBlock > math.MaxUint32 {
		return fmt.Errorf("metadata takes %d blocks, more than 32 bits can number", p.endBlock)
	}
	for _, n := range p.order {
		p.at(n).block += uint32(p.dataBlock)
	}
	return nil
}

// content is the size of what an inode holds in this image itself.
func (p *plan) content(n Node) uint64 {
	switch r := p.at(n); r.mode & TypeMask {
	case TypeDir:
		return dirSize(p.names(n), p.opts.BlockSize)
	case TypeSymlink:
		return r.a
	default:
		return 0
	}
}

func (p *plan) xattrs(r *record) []Xattr {
	if r.extra == 0 {
		return nil
	}
	xattrs, _, _ := decodeExtra(p.tree.extras[r.extra-1])
	return xattrs
}

// pathOf is for messages.
func (p *plan) pathOf(dir Node, name string) string {
	path := name
	for dir != Root {
		parent := p.at(dir).parent()
		for sibling, n := range p.tree.Children(parent) {
			if n == dir {
				path = sibling + "/" + path
			}
		}
		dir = parent
	}
	return fmt.Sprintf("%.4096q", path)
}
