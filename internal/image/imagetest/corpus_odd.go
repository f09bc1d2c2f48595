package imagetest

import (
	"archive/tar"
	"fmt"
	"strings"
	"time"
)

// oddCases are what tools write seldom, or only on purpose, and what means something all the same.
func oddCases() []Case {
	return []Case{
		{Rule: "N1", Name: "names that look like others", Layers: [][]Entry{{File("...", "1"), File("..a", "2"), File(".wh", "3"), File(".whx", "4"), File("a.wh.b", "5"), File("-rf", "6"), File(" ", "7")}}, Tree: " =7 -rf=6 ...=1 ..a=2 .wh=3 .whx=4 a.wh.b=5"},
		{Rule: "N1", Name: "bytes that are no text", Layers: [][]Entry{{rawName("\xff\xfe", "1"), rawName("a\nb", "2"), rawName("\x01\x7f", "3")}}, Tree: "\x01\x7f=3 a\nb=2 \xff\xfe=1"},
		{Rule: "N1", Name: "trailing slash on a file", Layers: [][]Entry{{Raw("f/", Block512('0', "f/", 0))}}, Tree: "f="},
		{Rule: "N1", Name: "trailing slash on a file of tar's first form", Layers: [][]Entry{{Raw("f/", Block512(0, "f/", 0))}}, Tree: "f/"},
		{Rule: "N1", Name: "the longest component", Layers: [][]Entry{{File(strings.Repeat("n", 255), "1")}}, Tree: strings.Repeat("n", 255) + "=1"},
		{Rule: "N1", Name: "long names of GNU tar", Layers: [][]Entry{{gnu(File(strings.Repeat("d/", 100)+"f", "1")), gnu(Symlink("l", strings.Repeat("t/", 100)))}, {Opaque("d"), Whiteout("l"), File("a", "2")}}, Tree: "a=2 d/"},
		{Rule: "N1", Name: "256 directories deep", Layers: [][]Entry{{File(strings.Repeat("d/", 255)+"f", "1")}, {Opaque("d/d")}}, Tree: "d/ d/d/"},
		{Rule: "N1", Name: "records for the whole archive", Layers: [][]Entry{{global(), File("a", "1")}}, Tree: "a=1"},
		{Rule: "N1", Name: "a contiguous file", Layers: [][]Entry{{Raw("c", Block512('7', "c", 0))}}, Tree: "c="},

		{Rule: "M2", Name: "one name, three types", Layers: [][]Entry{{File("a", "1"), Symlink("a", "b"), Dir("a"), File("a/x", "2"), FIFO("a")}}, Tree: "a|"},
		{Rule: "M4", Name: "to and fro over three layers", Layers: [][]Entry{{Dir("d"), File("d/a", "1")}, {File("d", "f")}, {Dir("d"), File("d/b", "2")}}, Tree: "d/ d/b=2"},
		{Rule: "M4", Name: "an implicit directory does not replace a symlink", Layers: [][]Entry{{Dir("r"), Symlink("l", "r")}, {File("l/s/a", "1")}}, Tree: "l->r r/ r/s/ r/s/a=1"},
		{Rule: "M5", Name: "symlink to the root", Layers: [][]Entry{{Symlink("l", "/"), File("l/l/a", "1")}}, Tree: "a=1 l->/"},
		{Rule: "M5", Name: "parent swapped for a symlink in one layer", Layers: [][]Entry{{Dir("d"), Dir("etc"), Symlink("d", "/etc"), File("d/passwd", "1")}}, Tree: "d->/etc etc/ etc/passwd=1"},
		{Rule: "M5", Name: "parent swapped for a symlink in the next layer", Layers: [][]Entry{{Dir("d"), File("d/a", "1")}, {Symlink("d", "../../../../etc")}, {File("d/passwd", "2")}}, Tree: "d->../../../../etc etc/ etc/passwd=2"},
		{Rule: "M5", Name: "chain of 40 links", Layers: [][]Entry{append(chain(40), File("l0/x", "1")), {Opaque("."), File("a", "1")}}, Tree: "a=1"},
		{Rule: "M5", Name: "symlink into /proc", Layers: [][]Entry{{Symlink("p", "/proc/self/root/etc"), File("p/shadow", "1")}}, Tree: "p->/proc/self/root/etc proc/ proc/self/ proc/self/root/ proc/self/root/etc/ proc/self/root/etc/shadow=1"},
		{Rule: "M5", Name: "whiteouts and entries through one link", Layers: [][]Entry{{Dir("usr/bin"), File("usr/bin/a", "1"), File("usr/bin/b", "1"), Symlink("bin", "usr/bin")}, {Whiteout("bin/a"), File("bin/c", "2"), Dir("usr/bin/d")}}, Tree: "bin->usr/bin usr/ usr/bin/ usr/bin/b=1 usr/bin/c=2 usr/bin/d/"},

		{Rule: "W1", Name: "twice", Layers: [][]Entry{{File("a", "1"), File("b", "1")}, {Whiteout("a"), Whiteout("a")}, {Whiteout("a")}}, Tree: "b=1"},
		{Rule: "W1", Name: "of one name of two", Layers: [][]Entry{{File("a", "1"), Link("b", "a")}, {Whiteout("a")}}, Tree: "b=1"},
		{Rule: "W1", Name: "of a device that was dropped", Layers: [][]Entry{{Block("a", 8, 0), File("b", "1")}, {Whiteout("a")}}, Tree: "b=1"},
		{Rule: "W1", Name: "as all there is of a layer", Layers: [][]Entry{{File("a", "1")}, {Whiteout("a")}, {File("c", "3")}}, Tree: "c=3"},
		{Rule: "W2", Name: "then another type", Layers: [][]Entry{{Dir("d"), File("d/a", "1")}, {Whiteout("d"), Symlink("d", "e")}}, Tree: "d->e"},
		{Rule: "W2", Name: "of a parent of this layer's entries", Layers: [][]Entry{{File("d/e/a", "1"), File("d/b", "1")}, {File("d/e/c", "2"), Whiteout("d")}}, Tree: "d/ d/e/ d/e/c=2"},
		{Rule: "W3", Name: "in each other", Layers: [][]Entry{{File("d/e/a", "1"), File("d/b", "1")}, {Opaque("d/e"), File("d/e/c", "2"), Opaque("d")}}, Tree: "d/ d/e/ d/e/c=2"},
		{Rule: "W3", Name: "over a file", Layers: [][]Entry{{File("d", "1")}, {Dir("d"), Opaque("d"), File("d/a", "2")}}, Tree: "d/ d/a=2"},
		{Rule: "W3", Name: "and a whiteout beside it", Layers: [][]Entry{{File("d/a", "1"), File("d/b", "1")}, {Whiteout("d/a"), Opaque("d"), File("d/a", "2")}}, Tree: "d/ d/a=2"},
		{Rule: "W4", Name: "opaque through a symlink", Layers: [][]Entry{{File("r/a", "1"), Symlink("l", "/r")}, {Opaque("l"), File("l/b", "2")}}, Tree: "l->/r r/ r/b=2"},

		{Rule: "L1", Name: "a chain of them", Layers: [][]Entry{{File("a", "1"), Link("b", "a"), Link("c", "b"), Link("d/e", "./c")}}, Tree: "a=1 b=1 c=1 d/ d/e=1 [a b c d/e]"},
		{Rule: "L1", Name: "with a size in its header", Layers: [][]Entry{{File("a", "1"), Raw("b", linkWithSize("b", "a", 512)), File("c", "2")}}, Tree: "a=1 b=1 c=2 [a b]"},
		{Rule: "L1", Name: "to a named pipe", Layers: [][]Entry{{FIFO("a"), Link("b", "a")}}, Tree: "a| b| [a b]"},
		{Rule: "L1", Name: "over a directory", Layers: [][]Entry{{File("a", "1"), File("d/x", "1")}, {Link("d", "a")}}, Tree: "a=1 d=1 [a d]"},
		{Rule: "L2", Name: "to a symlink of a lower layer", Layers: [][]Entry{{Symlink("s", "/etc/passwd")}, {Link("t", "s")}}, Tree: "s->/etc/passwd t->/etc/passwd [s t]"},
		{Rule: "L3", Name: "after its target was replaced", Layers: [][]Entry{{File("a", "1")}, {File("a", "2"), Link("b", "a")}, {File("a", "3")}}, Tree: "a=3 b=2"},

		{Rule: "P3", Name: "before 1970", Layers: [][]Entry{{File("a", "1").Time(time.Unix(-86400, 500))}}, At: "a", Stat: "-rw-r--r-- 0:0 -86399999999500"},
		{Rule: "P3", Name: "in the year 2260", Layers: [][]Entry{{File("a", "1").Time(time.Date(2260, 1, 1, 0, 0, 0, 0, time.UTC))}}, At: "a", Stat: "-rw-r--r-- 0:0 9151488000000000000"},
		{Rule: "P3", Name: "set-id and sticky bits", Layers: [][]Entry{{File("a", "1").Mode(0o7755), Dir("d").Mode(0o3777), File("b", "").Mode(0)}}, Tree: "a=1 b= d/"},
		{Rule: "P3", Name: "bits beyond the mode", Layers: [][]Entry{{File("a", "1").Mode(0o100644), Dir("d").Mode(0o40755)}}, At: "d", Stat: fmt.Sprintf("drwxr-xr-x 0:0 %d", When().UnixNano())},
		{Rule: "P4", Name: "mode of a symlink", Layers: [][]Entry{{Symlink("l", "a").Mode(0o600).Owner(3, 4)}}, At: "l", Stat: fmt.Sprintf("Lrwxrwxrwx 3:4 %d", When().UnixNano())},
		{Rule: "P3", Name: "numbers in binary", Layers: [][]Entry{{gnu(File("a", "1").Owner(1<<31, 1<<32-2))}}, At: "a", Stat: fmt.Sprintf("-rw-r--r-- 2147483648:4294967294 %d", When().UnixNano())},
		{Rule: "X1", Name: "on directories and links", Layers: [][]Entry{{Dir("d").Xattr("user.a", "1"), Symlink("l", "d").Xattr("security.x", "2")}}, At: "l", Stat: fmt.Sprintf("Lrwxrwxrwx 0:0 %d security.x=2", When().UnixNano())},
		{Rule: "X1", Name: "the longest name and a large value", Layers: [][]Entry{{File("a", "").Xattr("user."+strings.Repeat("n", 250), strings.Repeat("v", 3000))}}, Tree: "a="},
		{Rule: "X4", Name: "of users on what is no file", Layers: [][]Entry{{FIFO("p").Xattr("user.a", "1").Xattr("security.x", "2")}}, At: "p", Stat: fmt.Sprintf("prw-r--r-- 0:0 %d security.x=2", When().UnixNano())},

		{Rule: "H1", Name: "sparse files", Layers: [][]Entry{{
			Sparse("0.0", "a", 8192, At(4096, strings.Repeat("a", 512))), Sparse("0.1", "b", 3000, At(0, strings.Repeat("b", 512)), At(1024, strings.Repeat("B", 1976))),
			Sparse("1.0", "c", 1<<20, At(512<<10, strings.Repeat("c", 1024))), Sparse("1.0", "e", 0),
		}, {Link("d", "c")}, {Whiteout("c")}}, Tree: "a=" + holes(4096, strings.Repeat("a", 512), 8192) + " b=" + strings.Repeat("b", 512) + holes(512, strings.Repeat("B", 1976), 2488) +
			" d=" + holes(512<<10, strings.Repeat("c", 1024), 1<<20) + " e="},
	}
}

// holes is content at a place in size bytes of nothing.
func holes(at int, content string, size int) string {
	return strings.Repeat("\x00", at) + content + strings.Repeat("\x00", size-at-len(content))
}

func gnu(e Entry) Entry {
	e.Header.Format = tar.FormatGNU
	return e
}

// rawName is a file with a name that PAX would not take.
func rawName(name, content string) Entry {
	return Raw(name, append(Block512('0', name, int64(len(content))), pad([]byte(content))...))
}

func global() Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x", "path": "elsewhere"}}}
}

// linkWithSize is a hard link whose header claims a content that is not there.
func linkWithSize(name, target string, size int64) []byte {
	b := Block512('1', name, size)
	copy(b[157:], target)
	return Checksum(b)
}
