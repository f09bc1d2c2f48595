package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// A Tree is the file system of a complete image, to look at: the merge of its layers, as the guest will see
// it. Nothing is mounted, and nothing is looked up on the host: paths and symbolic links stay in the image.
// It is for one goroutine.
type Tree struct {
	tree   *tree
	layers []Layer
	open   map[uint16]*os.File // layers whose content was asked for, by slot
}

// Tree merges the layers of an image that Pull or Lookup gave. The caller closes it.
func (s *Store) Tree(img *Image) (*Tree, error) {
	t := newTree(s.limits)
	for i, l := range img.Layers {
		f, err := s.layerFile(l.DiffID, descriptor{})
		if err != nil {
			return nil, err
		}
		x, err := readIndex(f.idx)
		if err != nil {
			return nil, fmt.Errorf("list files of image %s: layer %d: read index: %w", img.ManifestDigest, i+1, err)
		}
		if err := t.apply(x, uint16(i+1)); err != nil {
			return nil, fmt.Errorf("list files of image %s: layer %d: %w", img.ManifestDigest, i+1, err)
		}
	}
	t.prune()
	return &Tree{tree: t, layers: img.Layers, open: map[uint16]*os.File{}}, nil
}

// Close gives up the layers that were read.
func (t *Tree) Close() error {
	var errs []error
	for _, f := range t.open {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// A File is one name in a Tree.
type File struct {
	Path     string      // absolute in the image
	Mode     fs.FileMode // type, permissions, set-id and sticky bits
	UID, GID uint32
	Size     int64  // bytes of a regular file, otherwise 0
	Target   string // of a symbolic link

	inode *erofs.Inode
}

// Stat finds what a path leads to, as the kernel would whose root is the image: symbolic links are followed,
// the last one too, and File.Path is where they end. The error is fs.ErrNotExist when there is nothing, and
// ErrRefused when no kernel would go so far.
func (t *Tree) Stat(name string) (File, error) {
	fail := func(err error) (File, error) { return File{}, fmt.Errorf("%s: %w", quote(name), err) }
	stack, names := []erofs.Node{erofs.Root}, []string{}
	rest, links := name, 0
	for rest != "" {
		part, after, _ := strings.Cut(rest, "/")
		rest = after
		here := stack[len(stack)-1]
		switch {
		case part == "" || part == ".":
			continue
		case !t.tree.IsDir(here):
			return fail(fs.ErrNotExist)
		case part == "..":
			stack, names = stack[:max(1, len(stack)-1)], names[:max(0, len(names)-1)]
			continue
		}
		next := t.tree.Lookup(here, part)
		switch {
		case next == 0:
			return fail(fs.ErrNotExist)
		case !t.tree.isSymlink(next):
			stack, names = append(stack, next), append(names, part)
			continue
		}
		if links++; links > maxLinks || len(rest) > maxLinks*maxPath {
			return fail(refuse("is reached through more than %d symbolic links", maxLinks))
		}
		target := t.tree.Target(next)
		if strings.HasPrefix(target, "/") {
			stack, names = stack[:1], names[:0]
		}
		rest = target + "/" + rest
	}
	return t.file("/"+strings.Join(names, "/"), stack[len(stack)-1]), nil
}

// Open reads the content of a regular file. The reader is good until the Tree is closed.
func (t *Tree) Open(f File) (*io.SectionReader, error) {
	if f.inode == nil || !f.Mode.IsRegular() {
		return nil, fmt.Errorf("%s: %w", quote(f.Path), errors.New("not a regular file"))
	}
	if f.Size == 0 {
		return io.NewSectionReader(strings.NewReader(""), 0, 0), nil
	}
	slot := f.inode.Slot
	if t.open[slot] == nil {
		layer, err := os.Open(t.layers[slot-1].Path)
		if err != nil {
			return nil, err
		}
		t.open[slot] = layer
	}
	if f.inode.Sparse {
		return io.NewSectionReader(sparseReader{t.open[slot], f.inode.Extents}, 0, f.Size), nil
	}
	return io.NewSectionReader(t.open[slot], int64(f.inode.Offset), f.Size), nil
}

// A sparseReader reads a file of which only the extents are in the layer, as if there were no end to it.
type sparseReader struct {
	layer   io.ReaderAt
	extents []erofs.Extent
}

func (r sparseReader) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	from, to := uint64(at), uint64(at)+uint64(len(p))
	for _, e := range r.extents {
		start, end := max(from, e.Start), min(to, e.Start+e.Size)
		if start >= end {
			continue
		}
		if n, err := r.layer.ReadAt(p[start-from:end-from], int64(e.Offset+start-e.Start)); n < int(end-start) {
			return 0, err
		}
	}
	return len(p), nil
}

func (t *Tree) file(name string, node erofs.Node) File {
	n := t.tree.Inode(node)
	f := File{Path: name, Mode: fileMode(n.Mode), UID: n.UID, GID: n.GID, Target: n.Target, inode: &n}
	if f.Mode.IsRegular() {
		f.Size = int64(n.Size)
	}
	return f
}

// fileMode translates a mode of Unix.
func fileMode(unix uint16) fs.FileMode {
	m := fs.FileMode(unix & 0o777)
	switch unix & erofs.TypeMask {
	case erofs.TypeDir:
		m |= fs.ModeDir
	case erofs.TypeSymlink:
		m |= fs.ModeSymlink
	case erofs.TypeFIFO:
		m |= fs.ModeNamedPipe
	case erofs.TypeSocket:
		m |= fs.ModeSocket
	case erofs.TypeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case erofs.TypeBlock:
		m |= fs.ModeDevice
	}
	for _, bit := range []struct {
		unix uint16
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if unix&bit.unix != 0 {
			m |= bit.mode
		}
	}
	return m
}

// A FileChange is a name that differs between two images.
type FileChange struct {
	Path string
	Old  *File    // nil for one that was added
	New  *File    // nil for one that was removed
	What []string // of one that is in both: "type", "content", "target", "mode", "owner", "attributes", "device"
}

// Compare lists what differs from a to b, sorted by path. Times don't count: every build sets them anew. The
// content of two files of one size is read, unless they are the same bytes of the same layer.
func Compare(a, b *Tree) ([]FileChange, error) {
	c := comparison{a: a, b: b}
	if err := c.directory("/", erofs.Root, erofs.Root); err != nil {
		return nil, fmt.Errorf("compare files: %w", err)
	}
	return c.changes, nil
}

type comparison struct {
	a, b    *Tree
	changes []FileChange
}

// directory compares two directories, either of which may be 0. Their depth is bounded by that of a tree.
func (c *comparison) directory(at string, a, b erofs.Node) error {
	names := map[string]bool{}
	list := func(t *Tree, dir erofs.Node) {
		if dir == 0 {
			return
		}
		for name := range t.tree.Children(dir) {
			names[name] = true
		}
	}
	list(c.a, a)
	list(c.b, b)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		var old, now erofs.Node
		if a != 0 {
			old = c.a.tree.Lookup(a, name)
		}
		if b != 0 {
			now = c.b.tree.Lookup(b, name)
		}
		if err := c.entry(strings.TrimSuffix(at, "/")+"/"+name, old, now); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) entry(at string, old, now erofs.Node) error {
	change := FileChange{Path: at}
	if old != 0 {
		f := c.a.file(at, old)
		change.Old = &f
	}
	if now != 0 {
		f := c.b.file(at, now)
		change.New = &f
	}
	if old != 0 && now != 0 {
		what, err := c.differences(*change.Old, *change.New)
		if err != nil {
			return err
		}
		change.What = what
	}
	if old == 0 || now == 0 || len(change.What) > 0 {
		c.changes = append(c.changes, change)
	}
	if old != 0 && !c.a.tree.IsDir(old) {
		old = 0
	}
	if now != 0 && !c.b.tree.IsDir(now) {
		now = 0
	}
	if old == 0 && now == 0 {
		return nil
	}
	return c.directory(at, old, now)
}

func (c *comparison) differences(old, now File) ([]string, error) {
	if old.Mode.Type() != now.Mode.Type() {
		return []string{"type"}, nil
	}
	var what []string
	same, err := c.sameContent(old, now)
	if err != nil {
		return nil, err
	}
	for _, d := range []struct {
		word    string
		differs bool
	}{
		{"content", !same},
		{"target", old.Target != now.Target},
		{"mode", old.Mode != now.Mode},
		{"owner", old.UID != now.UID || old.GID != now.GID},
		{"attributes", !slices.Equal(old.inode.Xattrs, now.inode.Xattrs)},
		{"device", old.inode.Major != now.inode.Major || old.inode.Minor != now.inode.Minor},
	} {
		if d.differs {
			what = append(what, d.word)
		}
	}
	return what, nil
}

func (c *comparison) sameContent(old, now File) (bool, error) {
	if old.Size != now.Size {
		return false, nil
	}
	if !old.Mode.IsRegular() || old.Size == 0 {
		return true, nil
	}
	if old.inode.Offset == now.inode.Offset && slices.Equal(old.inode.Extents, now.inode.Extents) && c.a.layers[old.inode.Slot-1].DiffID == c.b.layers[now.inode.Slot-1].DiffID {
		return true, nil
	}
	a, err := c.a.Open(old)
	if err != nil {
		return false, err
	}
	b, err := c.b.Open(now)
	if err != nil {
		return false, err
	}
	return equal(a, b)
}

// equal compares two streams of one length.
func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, x)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
		if _, err := io.ReadFull(b, y[:n]); err != nil {
			return false, err
		}
		if string(x[:n]) != string(y[:n]) {
			return false, nil
		}
		if err != nil {
			return true, nil
		}
	}
}
