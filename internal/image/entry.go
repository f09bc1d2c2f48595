package image

import (
	"archive/tar"
	"cmp"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// What an entry of a layer does.
type kind uint8

const (
	kindInode    kind = iota // puts an inode, not a directory, at path
	kindDir                  // puts a directory at path
	kindLink                 // makes path another name of target
	kindWhiteout             // hides path of the layers below
	kindOpaque               // hides everything in path of the layers below
	kindCount
)

// An entry is one entry of a layer's tar, checked.
type entry struct {
	kind  kind
	path  string // clean and relative; "" is the root
	link  string // kindLink: the target as it stands in the tar
	inode erofs.Inode

	suffix int // how much of path is not that of the entry before
}

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutAUFS   = ".wh..wh."
	xattrPAX       = "SCHILY.xattr."
)

// newEntry checks a header, whose content begins at offset, and gives the entry, or nil when the header
// has no meaning for the tree.
func newEntry(h *tar.Header, offset int64) (*entry, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil
	}
	path, err := cleanPath(h.Name)
	if err != nil {
		return nil, err
	}
	dir, base := splitPath(path)
	if strings.HasPrefix(path, whiteoutAUFS) && path != whiteoutOpaque {
		return nil, nil // AUFS's own bookkeeping at the top of old layers
	}
	if underWhiteout(dir) {
		return nil, refuse("lies below a whiteout")
	}
	// The name makes a whiteout, whatever the type: some tools write it as a hard link.
	switch rest, marked := strings.CutPrefix(base, whiteoutPrefix); {
	case base == whiteoutOpaque:
		return &entry{kind: kindOpaque, path: dir}, nil
	case marked && (rest == "" || rest == "." || rest == ".."):
		return nil, refuse("is a whiteout of no name")
	case marked:
		return &entry{kind: kindWhiteout, path: joinPath(dir, rest)}, nil
	}
	if h.Typeflag == tar.TypeLink {
		if h.Linkname == "" || len(h.Linkname) > maxPath {
			return nil, refuse("is a hard link with a target of %d bytes, want 1 to %d", len(h.Linkname), maxPath)
		}
		return &entry{kind: kindLink, path: path, link: h.Linkname}, nil
	}
	e := &entry{path: path}
	if h.Typeflag == tar.TypeDir {
		e.kind = kindDir
	}
	if err := setInode(&e.inode, h, offset); err != nil {
		return nil, err
	}
	if path == "" && e.kind != kindDir {
		return nil, refuse("is the root and not a directory")
	}
	return e, nil
}

func setInode(n *erofs.Inode, h *tar.Header, offset int64) error {
	*n = erofs.Inode{
		Mode: uint16(h.Mode & 0o7777),
		UID:  uint32(h.Uid), GID: uint32(h.Gid),
		Mtime: h.ModTime.Unix(), MtimeNsec: uint32(h.ModTime.Nanosecond()),
	}
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return refuse("has the owner %d:%d, want ids from 0 to %d", h.Uid, h.Gid, uint32(maxID))
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont:
		n.Mode |= erofs.TypeRegular
		if n.Size = uint64(h.Size); n.Size > 0 {
			n.Offset = uint64(offset)
		}
	case tar.TypeDir:
		n.Mode |= erofs.TypeDir
	case tar.TypeSymlink:
		// Linux has no permissions of links, and shows all of them.
		n.Mode = erofs.TypeSymlink | 0o777
		n.Target = h.Linkname
		if n.Target == "" || len(n.Target) > erofs.MaxTarget {
			return refuse("is a symbolic link with a target of %d bytes, want 1 to %d", len(n.Target), erofs.MaxTarget)
		}
	case tar.TypeFifo:
		n.Mode |= erofs.TypeFIFO
	case tar.TypeChar, tar.TypeBlock:
		n.Mode |= erofs.TypeChar
		if h.Typeflag == tar.TypeBlock {
			n.Mode = n.Mode&^erofs.TypeMask | erofs.TypeBlock
		}
		if h.Devmajor < 0 || h.Devmajor > erofs.MaxMajor || h.Devminor < 0 || h.Devminor > erofs.MaxMinor {
			return refuse("is the device %d:%d, at most %d:%d", h.Devmajor, h.Devminor, erofs.MaxMajor, erofs.MaxMinor)
		}
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	default:
		return refuse("has the type %q, which has no place in a file system", h.Typeflag)
	}
	return setXattrs(n, h)
}

func setXattrs(n *erofs.Inode, h *tar.Header) error {
	var size int
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPAX)
		if !ok || !meaningful(name, n.Mode) {
			continue
		}
		if len(value) > erofs.MaxXattr {
			return refuse("has the attribute %s of %d bytes, at most %d", quote(name), len(value), erofs.MaxXattr)
		}
		size += len(name) + len(value) + 8
		n.Xattrs = append(n.Xattrs, erofs.Xattr{Name: name, Value: value})
	}
	if size > erofs.MaxXattrs-16 {
		return refuse("has attributes of %d bytes, at most %d", size, erofs.MaxXattrs-16)
	}
	slices.SortFunc(n.Xattrs, func(a, b erofs.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// meaningful tells whether an attribute is one that the guest should see. Trusted ones, and those under which
// overlayfs keeps notes of its own, would let a layer redirect what the overlay above it shows; users'
// attributes are on files and directories only; names from other systems have no namespace in Linux.
func meaningful(name string, mode uint16) bool {
	if strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.") || !erofs.CanXattr(name) {
		return false
	}
	kind := mode & erofs.TypeMask
	return kind == erofs.TypeRegular || kind == erofs.TypeDir || !strings.HasPrefix(name, "user.")
}

// nameBytes is what an entry takes in memory beside its fixed part, as it is stored and in the tree.
func (e *entry) nameBytes() int64 {
	_, base := splitPath(e.path)
	n := int64(max(e.suffix, len(base)) + len(e.link) + len(e.inode.Target) + 32*len(e.inode.Extents))
	for _, x := range e.inode.Xattrs {
		n += int64(len(x.Name) + len(x.Value) + 32)
	}
	return n
}

// cleanPath makes a name relative to the root, without empty and "." components. It refuses "..", which no
// honest tool writes and on which others disagree.
func cleanPath(name string) (string, error) {
	if name == "" {
		return "", refuse("has no name")
	}
	if len(name) > maxPath {
		return "", refuse("has a name of %d bytes, at most %d", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", refuse("has a NUL byte in its name")
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return "", refuse("has .. in its name")
		case len(part) > erofs.MaxName:
			return "", refuse("has a component of %d bytes in its name, at most %d", len(part), erofs.MaxName)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return "", refuse("is %d directories deep, at most %d", len(parts), maxDepth)
	}
	return strings.Join(parts, "/"), nil
}

func underWhiteout(dir string) bool {
	return strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix)
}

func splitPath(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func joinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
