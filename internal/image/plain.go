package image

import (
	"archive/tar"
	"bytes"
	"time"
)

// Nearly every header in nearly every layer is a plain one: POSIX ustar, octal numbers, nothing before it that
// changes what it means. archive/tar looks at it from all sides, since it could be anything, and that was an
// eighth of what a layer took. A plain header is read here, and gives exactly what archive/tar would; any other is
// left to archive/tar, what looks like the end of the archive and what looks damaged above all.

// plainHeader reads block into h, if it is a plain header.
func plainHeader(block []byte, h *tar.Header) bool {
	if string(block[257:265]) != "ustar\x0000" {
		return false
	}
	kind := block[156]
	switch kind {
	case tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeDir:
	default:
		return false
	}
	var sum int64
	for _, c := range block {
		sum += int64(c)
	}
	for _, c := range block[148:156] {
		sum += ' ' - int64(c)
	}
	want, ok := octal(block[148:156])
	if !ok || want != sum {
		return false
	}
	mode, ok1 := octal(block[100:108])
	uid, ok2 := octal(block[108:116])
	gid, ok3 := octal(block[116:124])
	size, ok4 := octal(block[124:136])
	mtime, ok5 := octal(block[136:148])
	_, ok6 := octal(block[329:337])
	_, ok7 := octal(block[337:345])
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || !ok7 || (size != 0 && kind != tar.TypeReg) {
		return false
	}
	name, prefix := text(block[:100]), text(block[345:500])
	if kind == tar.TypeReg && bytes.HasSuffix(name, []byte("/")) {
		return false // old archives have directories like this
	}
	*h = tar.Header{
		Typeflag: kind, Name: string(name), Linkname: string(text(block[157:257])),
		Mode: mode, Uid: int(uid), Gid: int(gid), Size: size, ModTime: time.Unix(mtime, 0),
	}
	if len(prefix) > 0 {
		h.Name = string(prefix) + "/" + h.Name
	}
	return true
}

// text is a field up to its first NUL.
func text(field []byte) []byte {
	before, _, _ := bytes.Cut(field, []byte{0})
	return before
}

// octal reads digits that end in spaces and NULs; a field of only these is 0.
func octal(field []byte) (v int64, ok bool) {
	i := 0
	for ; i < len(field) && field[i]-'0' < 8; i++ {
		v = v<<3 | int64(field[i]-'0')
	}
	for ; i < len(field); i++ {
		if field[i] != ' ' && field[i] != 0 {
			return 0, false
		}
	}
	return v, true
}
