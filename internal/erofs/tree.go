package erofs

import (
	"hash/maphash"
	"iter"
	"math"
)

// A Tree is a directory tree in memory, made for millions of inodes: a Node is a number, what belongs to it
// lies in large blocks without pointers, and names are found by one hash table for the whole tree. An inode
// costs 72 bytes, a name of it about 30 and its length.
//
// Inodes that lose their last name stay in memory until the Tree goes. A Tree is for one goroutine.
type Tree struct {
	inodes blocksOf[record]
	names  blocksOf[dirent]
	text   text
	extras []string // encoded attributes and extents, by record.extra-1

	seed   maphash.Seed
	table  []uint32 // places in names, 0 for none; a power of two
	spaces uint32   // given out to directories
}

// A Node is an inode of a Tree. The zero Node is none.
type Node uint32

// Root is the root directory of every Tree.
const Root Node = 1

// A record is an inode as it is kept.
type record struct {
	mtime int64
	// Of regular files Size and Offset; of symbolic links the target's length and its place in the text; of
	// devices the number in b; of directories see parent and space.
	a, b           uint64
	uid, gid, nsec uint32
	extra          uint32
	mode, slot     uint16

	// Owned by Write.
	layout uint16
	ino    uint32 // place in the order of the inodes, from 1; 0 for one that is not reachable
	nlink  uint32
	nid    uint32
	block  uint32 // where plain data begins
}

// A dirent is a name. It stays when it is removed, without a node, and is used again.
type dirent struct {
	text  uint32 // place of the name
	space uint32 // of the directory
	node  Node
	next  uint32 // the name that was made before this one in the same space
	size  uint16
}

// NewTree is a tree of an empty root directory, 0755, of the user root, of time 0.
func NewTree() *Tree {
	t := &Tree{seed: maphash.MakeSeed(), table: make([]uint32, 64)}
	t.inodes.add(record{}) // Node 0
	t.names.add(dirent{})  // place 0
	t.New(&Inode{Mode: TypeDir | 0o755})
	return t
}

// New makes an inode that has no name yet. A directory is empty.
func (t *Tree) New(n *Inode) Node {
	id := Node(t.inodes.add(record{}))
	r := t.inodes.at(uint32(id))
	t.put(r, n)
	if n.Mode&TypeMask == TypeDir {
		t.empty(r)
	}
	return id
}

// SetProperties gives a directory the mode, owner, time and attributes of n and leaves its names.
func (t *Tree) SetProperties(dir Node, n *Inode) {
	r := t.inodes.at(uint32(dir))
	names := *r
	t.put(r, n)
	r.a, r.b = names.a, names.b
}

func (t *Tree) put(r *record, n *Inode) {
	*r = record{mode: n.Mode, uid: n.UID, gid: n.GID, mtime: n.Mtime, nsec: n.MtimeNsec}
	switch n.Mode & TypeMask {
	case TypeRegular:
		r.a, r.b, r.slot = n.Size, n.Offset, n.Slot
	case TypeSymlink:
		r.a, r.b = uint64(len(n.Target)), uint64(t.text.add(n.Target))
	case TypeChar, TypeBlock:
		r.b = uint64(n.Major)<<32 | uint64(n.Minor)
	}
	if len(n.Xattrs) > 0 || n.Sparse {
		t.extras = append(t.extras, encodeExtra(n.Xattrs, n.Sparse, n.Extents))
		r.extra = uint32(len(t.extras))
	}
}

// Inode gives all that the tree knows of a node.
func (t *Tree) Inode(id Node) Inode {
	r := t.inodes.at(uint32(id))
	n := Inode{Mode: r.mode, UID: r.uid, GID: r.gid, Mtime: r.mtime, MtimeNsec: r.nsec}
	switch r.mode & TypeMask {
	case TypeRegular:
		n.Size, n.Offset, n.Slot = r.a, r.b, r.slot
	case TypeSymlink:
		n.Target = t.target(r)
	case TypeChar, TypeBlock:
		n.Major, n.Minor = uint32(r.b>>32), uint32(r.b)
	}
	if r.extra > 0 {
		n.Xattrs, n.Sparse, n.Extents = decodeExtra(t.extras[r.extra-1])
	}
	return n
}

// Mode is that of a node.
func (t *Tree) Mode(id Node) uint16 { return t.inodes.at(uint32(id)).mode }

// IsDir reports whether a node is a directory.
func (t *Tree) IsDir(id Node) bool { return t.Mode(id)&TypeMask == TypeDir }

// Target is that of a symbolic link, "" of anything else.
func (t *Tree) Target(id Node) string {
	r := t.inodes.at(uint32(id))
	if r.mode&TypeMask != TypeSymlink {
		return ""
	}
	return t.target(r)
}

func (t *Tree) target(r *record) string { return t.text.get(uint32(r.b), int(r.a)) }

// Lookup finds a name in a directory, or gives 0.
func (t *Tree) Lookup(dir Node, name string) Node {
	if place := t.table[t.find(t.inodes.at(uint32(dir)).space(), name)]; place != 0 {
		return t.names.at(place).node
	}
	return 0
}

// Link makes name in dir lead to n, whatever it led to before. Two names of one node are hard links; a
// directory can have only one. What no name can be is for Write to refuse.
func (t *Tree) Link(dir Node, name string, n Node) {
	name = name[:min(len(name), math.MaxUint16)] // still too long
	r := t.inodes.at(uint32(dir))
	slot := t.find(r.space(), name)
	if t.table[slot] != 0 {
		t.names.at(t.table[slot]).node = n
		return
	}
	place := t.names.add(dirent{
		text: t.text.add(name), size: uint16(len(name)), space: r.space(), node: n, next: r.last(),
	})
	r.setLast(place)
	t.table[slot] = place
	if uint64(t.names.count)*4 > uint64(len(t.table))*3 {
		t.grow()
	}
}

// Unlink takes a name, with all below it, out of a directory, if it is there.
func (t *Tree) Unlink(dir Node, name string) {
	if place := t.table[t.find(t.inodes.at(uint32(dir)).space(), name)]; place != 0 {
		t.names.at(place).node = 0
	}
}

// Clear empties a directory.
func (t *Tree) Clear(dir Node) { t.empty(t.inodes.at(uint32(dir))) }

// Children goes over the names of a directory, in no order. Names may be unlinked on the way.
func (t *Tree) Children(dir Node) iter.Seq2[string, Node] {
	return func(yield func(string, Node) bool) {
		for place := t.inodes.at(uint32(dir)).last(); place != 0; {
			d := t.names.at(place)
			if d.node != 0 && !yield(t.name(d), d.node) {
				return
			}
			place = d.next
		}
	}
}

func (t *Tree) name(d *dirent) string { return t.text.get(d.text, int(d.size)) }

// A directory's names belong to a space, and emptying it takes another one: no name has to be visited, and
// what they led to is reachable no more.
func (t *Tree) empty(r *record) {
	t.spaces++
	r.b = uint64(t.spaces)
}

func (r *record) space() uint32        { return uint32(r.b) }
func (r *record) last() uint32         { return uint32(r.b >> 32) }
func (r *record) setLast(place uint32) { r.b = uint64(place)<<32 | r.b&0xffffffff }

// parent and first are Write's notes in a directory: its parent, and where its sorted names begin.
func (r *record) parent() Node          { return Node(r.a >> 32) }
func (r *record) first() uint32         { return uint32(r.a) }
func (r *record) setParent(p Node)      { r.a = uint64(p)<<32 | r.a&0xffffffff }
func (r *record) setFirst(place uint32) { r.a = r.a&^0xffffffff | uint64(place) }

// find gives the slot of the table in which a name is or would be.
func (t *Tree) find(space uint32, name string) uint32 {
	mask := uint32(len(t.table) - 1)
	for slot := t.hash(space, name) & mask; ; slot = (slot + 1) & mask {
		place := t.table[slot]
		if place == 0 {
			return slot
		}
		if d := t.names.at(place); d.space == space && int(d.size) == len(name) && t.name(d) == name {
			return slot
		}
	}
}

func (t *Tree) hash(space uint32, name string) uint32 {
	h := maphash.String(t.seed, name) ^ uint64(space)*0x9e3779b97f4a7c15
	return uint32(h ^ h>>32)
}

func (t *Tree) grow() {
	t.table = make([]uint32, 2*len(t.table))
	mask := uint32(len(t.table) - 1)
	for place := uint32(1); place < t.names.count; place++ {
		d := t.names.at(place)
		slot := t.hash(d.space, t.name(d)) & mask
		for t.table[slot] != 0 {
			slot = (slot + 1) & mask
		}
		t.table[slot] = place
	}
}
