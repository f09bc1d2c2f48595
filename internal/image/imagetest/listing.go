package imagetest

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Node is one name in a tree, with all that a program could find out about it.
type Node struct {
	Path     string // relative, "." for the root
	Mode     uint32 // st_mode: type, permissions, set-id and sticky bits
	UID, GID uint32
	Mtime    string // seconds and nanoseconds
	Size     int64  // of regular files and symbolic links
	Link     string // of one of several names of an inode: the first of them
	Device   string // major:minor
	Target   string // of a symbolic link
	Sum      string // sha256 of a regular file
	Xattrs   string // "name=value" in quotes, sorted
}

// Fields names what nodes are compared by, and gives the values in one order.
func (n Node) Fields() (names, values []string) {
	names = []string{"mode", "owner", "time", "size", "link", "device", "target", "content", "attributes"}
	return names, []string{
		fmt.Sprintf("%o", n.Mode), fmt.Sprintf("%d:%d", n.UID, n.GID), n.Mtime, fmt.Sprint(n.Size), n.Link, n.Device, n.Target, n.Sum, n.Xattrs,
	}
}

func (n Node) String() string {
	names, values := n.Fields()
	var line strings.Builder
	fmt.Fprintf(&line, "%q", n.Path)
	for i, v := range values {
		if v != "" {
			fmt.Fprintf(&line, " %s=%s", names[i], v)
		}
	}
	return line.String()
}

// List walks a directory of this machine and gives its nodes, sorted by path. What skip names is left out,
// with all below it; skip may be nil.
func List(root string, skip func(path string) bool) ([]Node, error) {
	var nodes []Node
	links := map[uint64]int{} // first of the nodes of an inode
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if skip != nil && skip(name) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		n, stat, err := stat(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		n.Path = name
		if !d.IsDir() && stat.Nlink > 1 {
			if first, ok := links[stat.Ino]; ok {
				nodes[first].Link, n.Link = nodes[first].Path, nodes[first].Path
			} else {
				links[stat.Ino] = len(nodes)
			}
		}
		nodes = append(nodes, n)
		return nil
	})
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Path, b.Path) })
	return nodes, err
}

// ListGuest is List as far as the init of a guest leaves an image alone: without what it mounts over it, and
// without the times of the two directories in which it makes the places for that.
func ListGuest(root string) ([]Node, error) {
	covered := []string{"dev", "proc", "sys", "run", "tmp", "etc/hostname", "etc/hosts", "etc/resolv.conf"}
	nodes, err := List(root, func(path string) bool { return slices.Contains(covered, path) })
	for i, n := range nodes {
		if n.Path == "." || n.Path == "etc" {
			nodes[i].Mtime = ""
		}
	}
	return nodes, err
}

func stat(path string) (Node, *syscall.Stat_t, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return Node{}, nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	n := Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)}
	switch info.Mode().Type() {
	case 0:
		n.Size = st.Size
		if n.Sum, err = sum(path); err != nil {
			return Node{}, nil, err
		}
	case fs.ModeSymlink:
		n.Size = st.Size
		if n.Target, err = os.Readlink(path); err != nil {
			return Node{}, nil, err
		}
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		n.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	default: // nothing more to say
	}
	n.Xattrs, err = xattrs(path)
	return n, st, err
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func xattrs(path string) (string, error) {
	buffer := make([]byte, 1<<16)
	size, err := unix.Llistxattr(path, buffer)
	if err != nil {
		return "", err
	}
	var list []string
	for name := range strings.SplitSeq(strings.Trim(string(buffer[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		size, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("attribute %s: %w", name, err)
		}
		list = append(list, fmt.Sprintf("%q", name+"="+string(value[:size])))
	}
	slices.Sort(list)
	return strings.Join(list, " "), nil
}

// Differences compares two listings: a line for each field of a node, or for a node that only one of them has,
// that says "path: field: got, want".
func Differences(got, want []Node) map[string]string {
	all := map[string]string{}
	index := map[string]Node{}
	for _, n := range want {
		index[n.Path] = n
	}
	for _, g := range got {
		w, ok := index[g.Path]
		if !ok {
			all[g.Path+": there"] = g.String() + ", want nothing"
			continue
		}
		delete(index, g.Path)
		names, a := g.Fields()
		_, b := w.Fields()
		for i := range names {
			if a[i] != b[i] {
				all[g.Path+": "+names[i]] = a[i] + ", want " + b[i]
			}
		}
	}
	for path, w := range index {
		all[path+": not there"] = "nothing, want " + w.String()
	}
	return all
}

// Lines gives a line for each node.
func Lines(nodes []Node) []string {
	lines := make([]string, len(nodes))
	for i, n := range nodes {
		lines[i] = n.String()
	}
	return lines
}
