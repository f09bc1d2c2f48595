package erofs

import (
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	xattrHeader = 12
	xattrEntry  = 4
)

// An xattrPrefix is a namespace that the format stores as one byte.
type xattrPrefix struct {
	prefix string
	index  byte
	whole  bool // the prefix is the name
}

func xattrPrefixes() [5]xattrPrefix {
	return [...]xattrPrefix{
		{"user.", 1, false},
		{"system.posix_acl_access", 2, true},
		{"system.posix_acl_default", 3, true},
		{"trusted.", 4, false},
		{"security.", 6, false},
	}
}

// splitXattr gives the index of name's namespace and the rest of it; ok is false when the format has no
// place for that name.
func splitXattr(name string) (index byte, rest string, ok bool) {
	for _, p := range xattrPrefixes() {
		if rest, found := strings.CutPrefix(name, p.prefix); found && (rest == "") == p.whole {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// CanXattr reports whether the format can hold an attribute of that name.
func CanXattr(name string) bool {
	_, rest, ok := splitXattr(name)
	return ok && len(rest) <= MaxXattrName && strings.IndexByte(name, 0) < 0
}

func checkXattrs(xattrs []Xattr) error {
	for i, x := range xattrs {
		if !CanXattr(x.Name) {
			return fmt.Errorf("attribute %q: no such namespace, or a name of more than %d bytes",
				x.Name[:min(len(x.Name), MaxXattrName)], MaxXattrName)
		}
		if len(x.Value) > MaxXattr {
			return fmt.Errorf("attribute %q: value of %d bytes, at most %d", x.Name, len(x.Value), MaxXattr)
		}
		if i > 0 && xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("attribute %q is there twice, or not in its place by name", x.Name)
		}
	}
	if size := xattrSize(xattrs); size > MaxXattrs {
		return fmt.Errorf("attributes of %d bytes, at most %d", size, MaxXattrs)
	}
	return nil
}

// xattrSize is the space that the attributes take behind the inode.
func xattrSize(xattrs []Xattr) uint64 {
	if len(xattrs) == 0 {
		return 0
	}
	size := uint64(xattrHeader)
	for _, x := range xattrs {
		_, rest, _ := splitXattr(x.Name)
		size += alignUp(uint64(xattrEntry+len(rest)+len(x.Value)), 4)
	}
	return size
}

// xattrCount is that space in the unit of the inode's field.
func xattrCount(xattrs []Xattr) uint16 {
	size := xattrSize(xattrs)
	if size == 0 {
		return 0
	}
	return uint16((size-xattrHeader)/4 + 1)
}

// appendXattrs appends the attributes. None is shared between inodes, and the name filter is zero, which
// rules nothing out.
func appendXattrs(b []byte, xattrs []Xattr) []byte {
	if len(xattrs) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeader)...)
	for _, x := range xattrs {
		index, rest, _ := splitXattr(x.Name)
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		for pad := xattrEntry + len(rest) + len(x.Value); pad%4 != 0; pad++ {
			b = append(b, 0)
		}
	}
	return b
}
