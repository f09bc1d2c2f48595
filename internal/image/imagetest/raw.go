package imagetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
)

// A Record is one of PAX's, "key=value" for the entry that follows.
type Record struct{ Key, Value string }

// PAX is an entry after records that archive/tar would not write, in that order. The entry itself is a regular
// file whose content is body.
func PAX(name string, body []byte, records ...Record) Entry {
	var list bytes.Buffer
	for _, r := range records {
		text := fmt.Sprintf(" %s=%s\n", r.Key, r.Value)
		n := len(text)
		for len(fmt.Sprint(n))+len(text) != n {
			n = len(fmt.Sprint(n)) + len(text)
		}
		fmt.Fprintf(&list, "%d%s", n, text)
	}
	raw := Block512(tar.TypeXHeader, "PaxHeaders/x", int64(list.Len()))
	raw = append(raw, pad(list.Bytes())...)
	raw = append(raw, Block512(tar.TypeReg, name, int64(len(body)))...)
	return Raw(name, append(raw, pad(body)...))
}

// Raw is an entry of the bytes given.
func Raw(name string, b []byte) Entry { return Entry{Header: tar.Header{Name: name}, Raw: b} }

// Block512 is the header block of an entry of any type and size, 0644 with the time When.
func Block512(kind byte, name string, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00", size, When().Unix()))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	return Checksum(b)
}

// Checksum makes the checksum of a header block right.
func Checksum(b []byte) []byte {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }

// A Part is what a sparse file has at one place.
type Part struct {
	Start   int64
	Content string
}

// At is a Part.
func At(start int64, content string) Part { return Part{Start: start, Content: content} }

// Sparse is a sparse file of size bytes in one of PAX's forms: "0.0", "0.1" or "1.0".
func Sparse(form, name string, size int64, parts ...Part) Entry {
	var numbers, pairs []string
	var records []Record
	var body strings.Builder
	for _, p := range parts {
		start, length := fmt.Sprint(p.Start), fmt.Sprint(len(p.Content))
		numbers = append(numbers, start, length)
		pairs = append(pairs, start+"\n"+length+"\n")
		records = append(records, Record{"GNU.sparse.offset", start}, Record{"GNU.sparse.numbytes", length})
		body.WriteString(p.Content)
	}
	count := Record{"GNU.sparse.numblocks", fmt.Sprint(len(parts))}
	switch form {
	case "0.0":
		return PAX(name, []byte(body.String()), append([]Record{{"GNU.sparse.size", fmt.Sprint(size)}, count}, records...)...)
	case "0.1":
		return PAX("GNUSparseFile.0/x", []byte(body.String()), Record{"GNU.sparse.size", fmt.Sprint(size)}, count,
			Record{"GNU.sparse.name", name}, Record{"GNU.sparse.map", strings.Join(numbers, ",")})
	case "1.0":
		list := pad(fmt.Appendf(nil, "%d\n%s", len(parts), strings.Join(pairs, "")))
		return PAX("GNUSparseFile.0/x", append(list, body.String()...), Record{"GNU.sparse.major", "1"}, Record{"GNU.sparse.minor", "0"},
			Record{"GNU.sparse.name", name}, Record{"GNU.sparse.realsize", fmt.Sprint(size)})
	default:
		panic("no form " + form)
	}
}
