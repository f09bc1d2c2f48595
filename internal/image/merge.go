package image

import (
	"fmt"
	"slices"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// apply puts a layer, whose tar is in device slot, over the tree. It takes the inodes of x as its own.
//
// Whiteouts act on the layers below only, wherever in the tar they stand, so they come first. But what they
// name has to be looked up in a tree where this layer's directories have replaced what is no directory
// below: a marker in such a directory must not reach through the symbolic link that was there before.
func (t *tree) apply(x *index, slot uint16) error {
	for i := range x.entries {
		if t.names += x.entries[i].nameBytes(); t.names > t.limits.NameBytes {
			return refuse("names and attributes of the layers exceed %d bytes", t.limits.NameBytes)
		}
	}
	t.forget()
	t.uncover(x)
	t.forget()
	if err := t.hide(x); err != nil {
		return err
	}
	t.forget()
	for i := range x.entries {
		e := &x.entries[i]
		if err := t.add(e, slot); err != nil {
			return fmt.Errorf("entry %s: %w", quote(e.path), err)
		}
	}
	return nil
}

// uncover replaces what is no directory by the directory that this layer has there, parents first.
func (t *tree) uncover(x *index) {
	var paths []string
	for i := range x.entries {
		if e := &x.entries[i]; e.kind == kindInode && isDir(e.inode) && e.path != "" {
			paths = append(paths, e.path)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		dir, base, err := t.parent(path, false)
		if err != nil || dir == nil {
			// Nothing is there below; or something that add, which walks the same way, will refuse.
			continue
		}
		if old := dir.Children[base]; old != nil && !isDir(old) {
			t.forget()
			dir.Children[base] = newDir()
		}
	}
}

// hide removes what the layer's whiteouts name. All are looked up before the first is carried out, so that
// none depends on another.
func (t *tree) hide(x *index) error {
	type hidden struct {
		dir  *erofs.Inode
		base string // "" for all of it
	}
	var list []hidden
	for i := range x.entries {
		e := &x.entries[i]
		var h hidden
		var err error
		switch e.kind {
		case kindWhiteout:
			h.dir, h.base, err = t.parent(e.path, false)
		case kindOpaque:
			h.dir, err = t.dir(e.path, false)
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("whiteout of %s: %w", quote(e.path), err)
		}
		if h.dir != nil {
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
	if e.kind != kindInode && e.kind != kindLink {
		return nil
	}
	if err := t.count(); err != nil {
		return err
	}
	if e.path == "" {
		if e.kind == kindLink {
			return refuse("is the root and not a directory")
		}
		copyProperties(t.root, e.inode)
		return nil
	}
	dir, base, err := t.parent(e.path, true)
	if err != nil {
		return err
	}
	if e.kind == kindLink {
		return t.link(dir, base, e.link)
	}
	if e.inode.Size > 0 {
		e.inode.Slot = slot
	}
	if isDir(e.inode) {
		t.setDir(dir, base, e.inode)
	} else {
		t.set(dir, base, e.inode)
	}
	return nil
}

// link makes dir/base a name of what target names: of a symbolic link itself, not of what it points to. The
// target may be in this layer, before the link, or in one below.
func (t *tree) link(dir *erofs.Inode, base, target string) error {
	// Not through the one-entry memory of parents, which dir came from.
	head, name := splitPath(target)
	from, err := t.walk(head, false)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", quote(target), err)
	}
	var n *erofs.Inode
	if from != nil {
		n = from.Children[name]
	}
	switch {
	case n == nil:
		return refuse("is a hard link to %s, which is not there", quote(target))
	case isDir(n):
		return refuse("is a hard link to %s, which is a directory", quote(target))
	}
	t.set(dir, base, n)
	return nil
}
