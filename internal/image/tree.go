package image

import (
	"strings"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// A tree is the file system that the layers merged so far make. Paths are resolved in it as a kernel would
// whose root it is: symbolic links lead to other places in the tree, ".." stops at the root.
type tree struct {
	*erofs.Tree
	limits Limits
	inodes int
	names  int64
	// Of all layers, whiteouts included.
	entries int
	steps   int // components walked, bounded so that links to links cannot burn hours

	// The last parent that was found, for the next entry is most often its neighbour. Forgotten whenever
	// a directory or symbolic link is replaced or removed.
	lastDir  string
	lastNode erofs.Node

	devices bool // there may be nodes for prune
}

// stepsPerEntry bounds the components walked for all entries together; honest images need about ten each.
const stepsPerEntry = 300

// chunksPerEntry is how much of the index of a sparse file costs as much as another file.
const chunksPerEntry = 32

func newTree(limits Limits) *tree {
	return &tree{Tree: erofs.NewTree(), limits: limits, inodes: 1}
}

// newDir is a directory that no layer has an entry for.
func (t *tree) newDir() erofs.Node { return t.New(&erofs.Inode{Mode: erofs.TypeDir | 0o755}) }

// parent finds the directory in which path's last component is. With create it makes the directories that
// are missing; without, it gives 0 for them. A file in the way is refused.
func (t *tree) parent(path string, create bool) (dir erofs.Node, base string, err error) {
	head, base := splitPath(path)
	dir, err = t.dir(head, create)
	return dir, base, err
}

// dir finds a directory by its path.
func (t *tree) dir(path string, create bool) (erofs.Node, error) {
	if t.lastNode != 0 && path == t.lastDir {
		return t.lastNode, nil
	}
	n, err := t.walk(path, create)
	if err == nil && n != 0 {
		t.lastDir, t.lastNode = path, n
	}
	return n, err
}

func (t *tree) forget() { t.lastDir, t.lastNode = "", 0 }

func (t *tree) walk(path string, create bool) (erofs.Node, error) {
	var (
		stack = append(make([]erofs.Node, 0, 32), erofs.Root)
		rest  = path
		links int
	)
	for rest != "" {
		part, after, _ := strings.Cut(rest, "/")
		rest = after
		if t.steps++; t.steps > stepsPerEntry*t.limits.Entries {
			return 0, refuse("makes paths that take too long to follow")
		}
		if len(stack) > maxDepth {
			return 0, refuse("is more than %d directories deep", maxDepth)
		}
		here := stack[len(stack)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		next := t.Lookup(here, part)
		switch {
		case next == 0 && !create:
			return 0, nil
		case next == 0:
			made, err := t.implicit(here, part)
			if err != nil {
				return 0, err
			}
			stack = append(stack, made)
		case t.IsDir(next):
			stack = append(stack, next)
		case t.isSymlink(next):
			target := t.Target(next)
			if links++; links > maxLinks {
				return 0, refuse("is reached through more than %d symbolic links", maxLinks)
			}
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
			}
			if rest = target + "/" + rest; len(rest) > maxLinks*maxPath {
				return 0, refuse("is reached through links of more than %d bytes", maxLinks*maxPath)
			}
		default:
			return 0, refuse("lies below %s, which is not a directory", quote(part))
		}
	}
	return stack[len(stack)-1], nil
}

// implicit makes the directory name, which the layer mentions only as part of a path.
func (t *tree) implicit(dir erofs.Node, name string) (erofs.Node, error) {
	if len(name) > erofs.MaxName {
		return 0, refuse("has a component of %d bytes, at most %d", len(name), erofs.MaxName)
	}
	if err := t.count(1); err != nil {
		return 0, err
	}
	n := t.newDir()
	t.Link(dir, name, n)
	return n, nil
}

func (t *tree) isSymlink(n erofs.Node) bool { return t.Mode(n)&erofs.TypeMask == erofs.TypeSymlink }

func (t *tree) count(n int) error {
	if t.inodes += n; t.inodes > t.limits.Entries {
		return refuse("is one more than the %d files and directories that an image may have", t.limits.Entries)
	}
	return nil
}

// set puts n, not a directory, at dir/base, whatever was there.
func (t *tree) set(dir erofs.Node, base string, n erofs.Node) {
	if old := t.Lookup(dir, base); old != 0 && (t.IsDir(old) || t.isSymlink(old)) {
		t.forget()
	}
	t.Link(dir, base, n)
}

// remove removes dir/base and everything below it.
func (t *tree) remove(dir erofs.Node, base string) {
	t.Unlink(dir, base)
	t.forget()
}

// clear removes everything in dir.
func (t *tree) clear(dir erofs.Node) {
	t.Clear(dir)
	t.forget()
}

// setDir gives dir/base the properties of n. A directory that is there keeps its content; anything else,
// a symbolic link included, is replaced by an empty directory.
func (t *tree) setDir(dir erofs.Node, base string, n *erofs.Inode) {
	old := t.Lookup(dir, base)
	if old != 0 && t.IsDir(old) {
		t.SetProperties(old, n)
		return
	}
	if old != 0 {
		t.forget()
	}
	t.Link(dir, base, t.New(n))
}

// prune removes the device nodes that a guest has no use for.
func (t *tree) prune() {
	if !t.devices {
		return
	}
	queue := []erofs.Node{erofs.Root}
	for len(queue) > 0 {
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for name, n := range t.Children(dir) {
			switch t.Mode(n) & erofs.TypeMask {
			case erofs.TypeDir:
				queue = append(queue, n)
			case erofs.TypeChar, erofs.TypeBlock:
				if inode := t.Inode(n); !allowedDevice(&inode) {
					t.Unlink(dir, name)
				}
			}
		}
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
