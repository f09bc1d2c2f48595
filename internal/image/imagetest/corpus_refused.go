package imagetest

import (
	"fmt"
	"strings"
)

// refusedCases are images that are refused: rules R.
func refusedCases() []Case {
	return []Case{
		{Rule: "R1", Name: "dotdot", Layers: [][]Entry{{File("a/../b", "")}}, Refused: `entry "a/../b": image refused: has .. in its name`},
		{Rule: "R1", Name: "dotdot at the end", Layers: [][]Entry{{Dir("a/..")}}, Refused: "has .. in its name"},
		{Rule: "R1", Name: "dotdot alone", Layers: [][]Entry{{Dir("..")}}, Refused: "has .. in its name"},
		{Rule: "R1", Name: "absolute dotdot in a whiteout", Layers: [][]Entry{{File("/../.wh.etc", "")}}, Refused: "has .. in its name"},
		{Rule: "R1", Name: "NUL in a PAX name", Layers: [][]Entry{{PAX("f", nil, Record{"path", "a\x00b"})}}, Refused: "not a tar"},
		{Rule: "R1", Name: "NUL in the target of a link", Layers: [][]Entry{{PAX("f", nil, Record{"linkpath", "a\x00b"})}}, Refused: "not a tar"},
		{Rule: "R1", Name: "no name", Layers: [][]Entry{{Raw("", Block512('0', "", 0))}}, Refused: "has no name"},
		{Rule: "R2", Name: "long name", Layers: [][]Entry{{File(strings.Repeat("p/", 2100)+"f", "")}}, Refused: "has a name of 4201 bytes"},
		{Rule: "R2", Name: "long component", Layers: [][]Entry{{File(strings.Repeat("n", 256), "")}}, Refused: "component of 256 bytes"},
		{Rule: "R2", Name: "deep", Layers: [][]Entry{{File(strings.Repeat("d/", 257)+"f", "")}}, Refused: "is 258 directories deep"},
		{Rule: "R2", Name: "deep through links", Layers: [][]Entry{{Dir(strings.Repeat("d/", 200)), Symlink("l", strings.Repeat("d/", 200)), File("l/"+strings.Repeat("e/", 100)+"f", "")}}, Refused: "more than 256 directories deep"},
		{Rule: "R3", Name: "whiteout of no name", Layers: [][]Entry{{File("d/.wh.", "")}}, Refused: "whiteout of no name"},
		{Rule: "R3", Name: "whiteout of dot", Layers: [][]Entry{{File("d/.wh..", "")}}, Refused: "whiteout of no name"},
		{Rule: "R3", Name: "whiteout of dotdot", Layers: [][]Entry{{File("d/.wh...", "")}}, Refused: "whiteout of no name"},
		{Rule: "R3", Name: "below a whiteout", Layers: [][]Entry{{File("d/.wh.x/y", "")}}, Refused: "below a whiteout"},
		{Rule: "R4", Name: "file as parent", Layers: [][]Entry{{File("f", "1"), File("f/a", "2")}}, Refused: `entry "f/a": image refused: lies below "f", which is not a directory`},
		{Rule: "R4", Name: "file of a lower layer as parent", Layers: [][]Entry{{File("f", "1")}, {File("f/a", "2")}}, Refused: "layer 2 of 2"},
		{Rule: "R4", Name: "opaque on a file", Layers: [][]Entry{{File("f", "1")}, {Opaque("f")}}, Refused: `whiteout of "f"`},
		{Rule: "R4", Name: "device as parent", Layers: [][]Entry{{Char("c", 0, 0), File("c/a", "2")}}, Refused: "not a directory"},
		{Rule: "R4", Name: "whiteout in a file", Layers: [][]Entry{{File("f", "1")}, {Whiteout("f/a")}}, Refused: `whiteout of "f/a"`},
		{Rule: "R4", Name: "whiteout in a file behind a link", Layers: [][]Entry{{File("f", "1"), Symlink("l", "f")}, {Whiteout("l/a")}}, Refused: `whiteout of "l/a"`},
		{Rule: "R4", Name: "parent that is a link to a file", Layers: [][]Entry{{File("f", "1"), Symlink("l", "/f"), File("l/a", "")}}, Refused: "not a directory"},
		{Rule: "R5", Name: "root is a file", Layers: [][]Entry{{File(".", "x")}}, Refused: "is the root"},
		{Rule: "R5", Name: "root is a symlink", Layers: [][]Entry{{Symlink(".", "a")}}, Refused: "is the root"},
		{Rule: "R5", Name: "root is a hard link", Layers: [][]Entry{{File("a", ""), Link("/", "a")}}, Refused: "is the root"},
		{Rule: "R6", Name: "hard link to nothing", Layers: [][]Entry{{Link("b", "a")}}, Refused: `entry "b": image refused: is a hard link to "a", which is not there`},
		{Rule: "R6", Name: "hard link to a later file", Layers: [][]Entry{{Link("b", "a"), File("a", "")}}, Refused: "not there"},
		{Rule: "R6", Name: "hard link to a directory", Layers: [][]Entry{{Dir("d"), Link("b", "d")}}, Refused: "which is a directory"},
		{Rule: "R6", Name: "hard link out of the tree", Layers: [][]Entry{{Link("b", "../../../etc/passwd")}}, Refused: "not there"},
		{Rule: "R6", Name: "hard link to what the layer hides", Layers: [][]Entry{{File("a", "")}, {Whiteout("a"), Link("b", "a")}}, Refused: "not there"},
		{Rule: "R6", Name: "hard link to the root", Layers: [][]Entry{{Link("b", "/")}}, Refused: "not there"},
		{Rule: "R6", Name: "hard link to a file that was replaced by a directory", Layers: [][]Entry{{File("a", "")}, {Dir("a"), Link("b", "a")}}, Refused: "which is a directory"},
		{Rule: "R6", Name: "hard link through a file", Layers: [][]Entry{{File("a", ""), Link("b", "a/c")}}, Refused: "hard link to \"a/c\""},
		{Rule: "R6", Name: "hard link without a target", Layers: [][]Entry{{Raw("b", Block512('1', "b", 0))}}, Refused: "target of 0 bytes"},
		{Rule: "R7", Name: "symlink loop", Layers: [][]Entry{{Symlink("a", "b"), Symlink("b", "a"), File("a/x", "")}}, Refused: "more than 40 symbolic links"},
		{Rule: "R7", Name: "long target", Layers: [][]Entry{{Symlink("a", strings.Repeat("t", 4096))}}, Refused: "target of 4096 bytes"},
		{Rule: "R8", Name: "sparse file of an unknown version", Layers: [][]Entry{{PAX("f", nil, Record{"GNU.sparse.major", "2"}, Record{"GNU.sparse.minor", "0"})}}, Refused: `unknown version "2.0"`},
		{Rule: "R8", Name: "parts between sectors", Layers: [][]Entry{{Sparse("0.1", "f", 9000, At(100, "x"))}}, Refused: `entry "f": image refused: is a sparse file whose part of 1 bytes at 100 is not made of blocks`},
		{Rule: "R8", Name: "part that ends between sectors", Layers: [][]Entry{{Sparse("1.0", "f", 9000, At(0, "x"))}}, Refused: "part of 1 bytes at 0 is not made of blocks"},
		{Rule: "R8", Name: "parts that overlap", Layers: [][]Entry{{Sparse("0.0", "f", 9000, At(512, strings.Repeat("x", 1024)), At(1024, ""))}}, Refused: "not a tar"},
		{Rule: "R8", Name: "part beyond the end", Layers: [][]Entry{{Sparse("1.0", "f", 1000, At(512, strings.Repeat("x", 512)))}}, Refused: "not a tar"},
		{Rule: "R8", Name: "fewer bytes than the map says", Layers: [][]Entry{{PAX("f", make([]byte, 512), Record{"GNU.sparse.size", "4096"}, Record{"GNU.sparse.numblocks", "1"}, Record{"GNU.sparse.map", "0,1024"})}}, Refused: "parts end at byte 2560 of the archive, and its content at 2048"},
		{Rule: "R8", Name: "more bytes than the map says", Layers: [][]Entry{{PAX("f", make([]byte, 1536), Record{"GNU.sparse.size", "4096"}, Record{"GNU.sparse.numblocks", "1"}, Record{"GNU.sparse.map", "0,1024"})}}, Refused: "parts end at byte 2560 of the archive, and its content at 3072"},
		{Rule: "R7", Name: "empty target", Layers: [][]Entry{{Raw("a", Block512('2', "a", 0))}}, Refused: "target of 0 bytes"},
		{Rule: "R7", Name: "chain of 41 links", Layers: [][]Entry{append(chain(41), File("l0/x", ""))}, Refused: "more than 40 symbolic links"},
		{Rule: "R7", Name: "links that grow", Layers: [][]Entry{{Symlink("a", strings.Repeat("a/", 2000)), File("a/x", "")}}, Refused: "links"},
		{Rule: "R8", Name: "GNU tar's older form", Layers: [][]Entry{{Raw("a", oldGNUSparse("a"))}}, Refused: "sparse file in GNU tar's old form"},
		{Rule: "R8", Name: "sparse file without a map", Layers: [][]Entry{{PAX("f", nil, Record{"GNU.sparse.realsize", "1"})}}, Refused: "without a map"},
		{Rule: "R10", Name: "unknown type", Layers: [][]Entry{{Raw("a", Block512('Z', "a", 0))}}, Refused: "has the type 'Z'"},
		{Rule: "R10", Name: "a volume's label of GNU tar", Layers: [][]Entry{{Raw("a", Block512('V', "a", 0))}}, Refused: "has the type 'V'"},
		{Rule: "R10", Name: "a dump of directories of GNU tar", Layers: [][]Entry{{Raw("a", Block512('D', "a", 0))}}, Refused: "has the type 'D'"},
		{Rule: "R11", Name: "PAX record", Layers: [][]Entry{{PAX("f", nil, Record{"SCHILY.xattr.user.x", strings.Repeat("x", 1<<20)})}}, Refused: "not a tar"},
		{Rule: "R9", Name: "device number", Layers: [][]Entry{{Char("dev/x", 4096, 0)}}, Refused: "is the device 4096:0"},
		{Rule: "R9", Name: "negative owner", Layers: [][]Entry{{File("a", "").Owner(-1, 0)}}, Refused: "owner -1:0"},
		{Rule: "R9", Name: "owner beyond 32 bits", Layers: [][]Entry{{File("a", "").Owner(0, 1<<32-1)}}, Refused: "owner 0:4294967295"},
		{Rule: "R11", Name: "large attribute", Layers: [][]Entry{{File("a", "").Xattr("user.x", strings.Repeat("x", 65536))}}, Refused: "attribute \"user.x\" of 65536 bytes"},
		{Rule: "R11", Name: "many attributes", Layers: [][]Entry{{manyXattrs()}}, Refused: "has attributes of"},
	}
}

func manyXattrs() Entry {
	e := File("a", "")
	for i := range 9 {
		e = e.Xattr(fmt.Sprintf("user.x%d", i), strings.Repeat("x", 32<<10))
	}
	return e
}

// chain is n symbolic links, l0 to the last, each to the next, and the directory they lead to.
func chain(n int) []Entry {
	var list []Entry
	for i := range n - 1 {
		list = append(list, Symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
	}
	return append(list, Symlink(fmt.Sprintf("l%d", n-1), "end"), Dir("end"))
}

// oldGNUSparse is the header of a sparse file of 512 bytes, which are all hole.
func oldGNUSparse(name string) []byte {
	b := Block512('S', name, 0)
	copy(b[257:], "ustar  \x00")
	copy(b[483:], "00000001000\x00")
	return Checksum(b)
}
