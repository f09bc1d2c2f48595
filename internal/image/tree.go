package image

import (
	"strings"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// A tree is the file system that the layers merged so far make. Paths are resolved in it as a kernel would
// whose root it is: symbolic links lead to other places in the tree, ".." stops at the root.
type tree struct {
	root   *erofs.Inode
	limits Limits
	inodes int
	names  int64
	steps  int // components walked, bounded so that links to links cannot burn hours

	// The last parent that was found, for the next entry is most often its neighbour. Forgotten whenever
	// a directory or symbolic link is replaced or removed.
	lastDir  string
	lastNode *erofs.Inode
}

// stepsPerEntry bounds the components walked for all entries together; honest images need about ten each.
const stepsPerEntry = 300

func newTree(limits Limits) *tree {
	return &tree{root: newDir(), limits: limits, inodes: 1}
}

// newDir is a directory that no layer has an entry for.
func newDir() *erofs.Inode {
	return &erofs.Inode{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofs.Inode{}}
}

func isDir(n *erofs.Inode) bool     { return n.Mode&erofs.TypeMask == erofs.TypeDir }
func isSymlink(n *erofs.Inode) bool { return n.Mode&erofs.TypeMask == erofs.TypeSymlink }

// parent finds the directory in which path's last component is. With create it makes the directories that
// are missing; without, it gives nil for them. A file in the way is refused.
func (t *tree) parent(path string, create bool) (dir *erofs.Inode, base string, err error) {
	head, base := splitPath(path)
	dir, err = t.dir(head, create)
	return dir, base, err
}

// dir finds a directory by its path.
func (t *tree) dir(path string, create bool) (*erofs.Inode, error) {
	if t.lastNode != nil && path == t.lastDir {
		return t.lastNode, nil
	}
	n, err := t.walk(path, create)
	if err == nil && n != nil {
		t.lastDir, t.lastNode = path, n
	}
	return n, err
}

func (t *tree) forget() { t.lastNode = nil }

func (t *tree) walk(path string, create bool) (*erofs.Inode, error) {
	var (
		stack = []*erofs.Inode{t.root}
		rest  = path
		links int
	)
	for rest != "" {
		part, after, _ := strings.Cut(rest, "/")
		rest = after
		if t.steps++; t.steps > stepsPerEntry*t.limits.Entries {
			return nil, refuse("makes paths that take too long to follow")
		}
		if len(stack) > maxDepth {
			return nil, refuse("is more than %d directories deep", maxDepth)
		}
		here := stack[len(stack)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		next := here.Children[part]
		switch {
		case next == nil && !create:
			return nil, nil
		case next == nil:
			made, err := t.implicit(here, part)
			if err != nil {
				return nil, err
			}
			stack = append(stack, made)
		case isDir(next):
			stack = append(stack, next)
		case isSymlink(next):
			if links++; links > maxLinks {
				return nil, refuse("is reached through more than %d symbolic links", maxLinks)
			}
			if strings.HasPrefix(next.Target, "/") {
				stack = stack[:1]
			}
			if rest = next.Target + "/" + rest; len(rest) > maxLinks*maxPath {
				return nil, refuse("is reached through links of more than %d bytes", maxLinks*maxPath)
			}
		default:
			return nil, refuse("lies below %s, which is not a directory", quote(part))
		}
	}
	return stack[len(stack)-1], nil
}

// implicit makes the directory name, which the layer mentions only as part of a path.
func (t *tree) implicit(dir *erofs.Inode, name string) (*erofs.Inode, error) {
	if len(name) > erofs.MaxName {
		return nil, refuse("has a component of %d bytes, at most %d", len(name), erofs.MaxName)
	}
	if err := t.count(); err != nil {
		return nil, err
	}
	n := newDir()
	dir.Children[name] = n
	return n, nil
}

func (t *tree) count() error {
	if t.inodes++; t.inodes > t.limits.Entries {
		return refuse("is one more than the %d files and directories that an image may have", t.limits.Entries)
	}
	return nil
}

// set puts n, not a directory, at dir/base, whatever was there.
func (t *tree) set(dir *erofs.Inode, base string, n *erofs.Inode) {
	if old := dir.Children[base]; old != nil && (isDir(old) || isSymlink(old)) {
		t.forget()
	}
	dir.Children[base] = n
}

// remove removes dir/base and everything below it.
func (t *tree) remove(dir *erofs.Inode, base string) {
	if dir.Children[base] != nil {
		delete(dir.Children, base)
		t.forget()
	}
}

// clear removes everything in dir.
func (t *tree) clear(dir *erofs.Inode) {
	dir.Children = map[string]*erofs.Inode{}
	t.forget()
}

// setDir gives dir/base the properties of n. A directory that is there keeps its content; anything else,
// a symbolic link included, is replaced by an empty directory.
func (t *tree) setDir(dir *erofs.Inode, base string, n *erofs.Inode) {
	old := dir.Children[base]
	if old == nil || !isDir(old) {
		n.Children = map[string]*erofs.Inode{}
		dir.Children[base] = n
		if old != nil {
			t.forget()
		}
		return
	}
	copyProperties(old, n)
}

func copyProperties(dst, src *erofs.Inode) {
	dst.Mode, dst.UID, dst.GID = src.Mode, src.UID, src.GID
	dst.Mtime, dst.MtimeNsec = src.Mtime, src.MtimeNsec
	dst.Xattrs = src.Xattrs
}

// prune removes the device nodes that a guest has no use for.
func (t *tree) prune() {
	queue := []*erofs.Inode{t.root}
	for len(queue) > 0 {
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for name, n := range dir.Children {
			switch {
			case isDir(n):
				queue = append(queue, n)
			case isDevice(n) && !allowedDevice(n):
				delete(dir.Children, name)
			}
		}
	}
}

func isDevice(n *erofs.Inode) bool {
	switch n.Mode & erofs.TypeMask {
	case erofs.TypeChar, erofs.TypeBlock:
		return true
	default:
		return false
	}
}

// allowedDevice knows the nodes that every process may use anyway and that are found in chroots within
// images. Any other, under a mode that the image chooses, would open the guest's own disks and memory to
// processes without privileges; the guest makes the nodes of what it has in /dev. 0:0 is overlayfs' own
// whiteout.
func allowedDevice(n *erofs.Inode) bool {
	if n.Mode&erofs.TypeMask != erofs.TypeChar {
		return false
	}
	switch [2]uint32{n.Major, n.Minor} {
	case [2]uint32{1, 3}, // null
		[2]uint32{1, 5}, // zero
		[2]uint32{1, 7}, // full
		[2]uint32{1, 8}, // random
		[2]uint32{1, 9}, // urandom
		[2]uint32{5, 0}, // tty
		[2]uint32{5, 1}, // console
		[2]uint32{5, 2}: // ptmx
		return true
	default:
		return false
	}
}
