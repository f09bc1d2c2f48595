package erofstest

import "github.com/pinnacehq/pinnace/internal/erofs"

// A Node is an inode with its names, for trees that are written down. Two names for one *Node are hard links.
type Node struct {
	Mode      uint16
	UID, GID  uint32
	Mtime     int64
	MtimeNsec uint32

	Size    uint64
	Offset  uint64
	Slot    uint16
	Sparse  bool
	Extents []erofs.Extent

	Major, Minor uint32
	Target       string
	Xattrs       []erofs.Xattr
	Children     map[string]*Node
}

// Tree is the tree whose root is this node.
func (n *Node) Tree() *erofs.Tree {
	t := erofs.NewTree()
	known := map[*Node]erofs.Node{n: erofs.Root}
	t.SetProperties(erofs.Root, n.Inode())
	n.fill(t, erofs.Root, known)
	return t
}

func (n *Node) fill(t *erofs.Tree, dir erofs.Node, known map[*Node]erofs.Node) {
	for name, child := range n.Children {
		if known[child] == 0 {
			known[child] = t.New(child.Inode())
			child.fill(t, known[child], known)
		}
		t.Link(dir, name, known[child])
	}
}

// Inode is the node without its names.
func (n *Node) Inode() *erofs.Inode {
	return &erofs.Inode{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
		Size: n.Size, Offset: n.Offset, Slot: n.Slot, Sparse: n.Sparse, Extents: n.Extents,
		Major: n.Major, Minor: n.Minor, Target: n.Target, Xattrs: n.Xattrs,
	}
}
