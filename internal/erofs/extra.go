package erofs

import "encoding/binary"

// What few inodes have is kept as a string: the number of attributes, their names and values, and the
// extents. Numbers are uvarints, before strings their lengths.

func encodeExtra(xattrs []Xattr, sparse bool, extents []Extent) string {
	b := binary.AppendUvarint(nil, uint64(len(xattrs)))
	for _, x := range xattrs {
		b = append(binary.AppendUvarint(b, uint64(len(x.Name))), x.Name...)
		b = append(binary.AppendUvarint(b, uint64(len(x.Value))), x.Value...)
	}
	if sparse {
		b = binary.AppendUvarint(b, uint64(len(extents)))
		for _, e := range extents {
			b = binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(b, e.Start), e.Size), e.Offset)
		}
	}
	return string(b)
}

func decodeExtra(s string) (xattrs []Xattr, sparse bool, extents []Extent) {
	next := func() uint64 {
		var v uint64
		for shift := 0; ; shift += 7 {
			c := s[0]
			s = s[1:]
			if v |= uint64(c&0x7f) << shift; c < 0x80 {
				return v
			}
		}
	}
	word := func() string {
		n := next()
		var w string
		w, s = s[:n], s[n:]
		return w
	}
	if count := next(); count > 0 {
		xattrs = make([]Xattr, count)
	}
	for i := range xattrs {
		xattrs[i] = Xattr{Name: word(), Value: word()}
	}
	if sparse = s != ""; sparse {
		extents = make([]Extent, next())
		for i := range extents {
			extents[i] = Extent{Start: next(), Size: next(), Offset: next()}
		}
	}
	return xattrs, sparse, extents
}
