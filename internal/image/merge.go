package image

import (
	"fmt"
	"slices"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// apply puts a layer, whose tar is in device slot, over the tree.
//
// Whiteouts act on the layers below only, wherever in the tar they stand, so they come first. But what they
// name has to be looked up in a tree where this layer's directories have replaced what is no directory
// below: a marker in such a directory must not reach through the symbolic link that was there before.
func (t *tree) apply(x *index, slot uint16) error {
	defer t.forget() // for it holds on to x
	if t.inodes > 1 {
		t.uncover(x)
		t.forget()
		if err := t.hide(x); err != nil {
			return err
		}
		t.forget()
	}
	for e := range x.entries(kindInode, kindDir, kindLink, kindWhiteout, kindOpaque) {
		if err := t.add(e, slot); err != nil {
			return fmt.Errorf("entry %s: %w", quote(e.path), err)
		}
	}
	return nil
}

// uncover replaces what is no directory by the directory that this layer has there, parents first.
func (t *tree) uncover(x *index) {
	var paths []string
	for e := range x.entries(kindDir) {
		if e.path != "" {
			paths = append(paths, e.path)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		dir, base, err := t.parent(path, false)
		if err != nil || dir == 0 {
			// Nothing is there below; or something that add, which walks the same way, will refuse.
			continue
		}
		if old := t.Lookup(dir, base); old != 0 && !t.IsDir(old) {
			t.forget()
			t.Link(dir, base, t.newDir())
		}
	}
}

// hide removes what the layer's whiteouts name. All are looked up before the first is carried out, so that
// none depends on another.
func (t *tree) hide(x *index) error {
	type hidden struct {
		dir  erofs.Node
		base string // "" for all of it
	}
	var list []hidden
	for e := range x.entries(kindWhiteout, kindOpaque) {
		var h hidden
		var err error
		if e.kind == kindWhiteout {
			h.dir, h.base, err = t.parent(e.path, false)
		} else {
			h.dir, err = t.dir(e.path, false)
		}
		if err != nil {
			return fmt.Errorf("whiteout of %s: %w", quote(e.path), err)
		}
		if h.dir != 0 {
			list = append(list, h)
		}
	}
	for _, h := range list {
		if h.base == "" {
			t.clear(h.dir)
		} else {
			t.remove(h.dir, h.base)
		}
	}
	return nil
}

// add puts the layer's own entries into the tree, in the order of the tar: of two with one name, the last
// stands.
func (t *tree) add(e *entry, slot uint16) error {
	t.entries++
	if t.names += e.nameBytes(); t.names > t.limits.names(t.entries) {
		return refuse("is where names and attributes of the layers exceed %d bytes", t.limits.names(t.entries))
	}
	if e.kind == kindWhiteout || e.kind == kindOpaque {
		return nil
	}
	if err := t.count(1); err != nil {
		return err
	}
	if e.path == "" {
		if e.kind != kindDir {
			return refuse("is the root and not a directory")
		}
		t.SetProperties(erofs.Root, &e.inode)
		return nil
	}
	dir, base, err := t.parent(e.path, true)
	if err != nil {
		return err
	}
	switch e.kind {
	case kindLink:
		return t.link(dir, base, e.link)
	case kindDir:
		t.setDir(dir, base, &e.inode)
		return nil
	default: // kindInode
	}
	n := &e.inode
	switch n.Mode & erofs.TypeMask {
	case erofs.TypeRegular:
		if n.Size > 0 {
			n.Slot = slot
		}
		if n.Sparse {
			if err := t.count(int(erofs.Chunks(n, sectorSize) / chunksPerEntry)); err != nil {
				return err
			}
		}
	case erofs.TypeChar, erofs.TypeBlock:
		t.devices = true
	}
	t.set(dir, base, t.New(n))
	return nil
}

// link makes dir/base a name of what target names: of a symbolic link itself, not of what it points to. The
// target may be in this layer, before the link, or in one below.
func (t *tree) link(dir erofs.Node, base, target string) error {
	// Not through the one-entry memory of parents, which dir came from.
	head, name := splitPath(target)
	from, err := t.walk(head, false)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(target), err)
	}
	var n erofs.Node
	if from != 0 {
		n = t.Lookup(from, name)
	}
	switch {
	case n == 0:
		return refuse("is a hard link to %s, which is not there", quote(target))
	case t.IsDir(n):
		return refuse("is a hard link to %s, which is a directory", quote(target))
	}
	t.set(dir, base, n)
	return nil
}
