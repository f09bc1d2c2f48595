//go:build linux

package pid1_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
)

// writeImage makes an image of two layers: the first is a disk of its own and holds the program, the second is a
// partition of a pack disk and holds the other files.
func (l *lab) writeImage(t *testing.T, program []byte) {
	t.Helper()
	tree := &erofstest.Node{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofstest.Node{}}
	var second []byte
	for _, f := range []struct {
		path, content string
		mode          uint16
	}{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:,,,:/home/web:/bin/sh\n", 0o644},
		{"etc/group", "root:x:0:\nweb:x:1001:\nlogs:x:2000:web,other\nmedia:x:2001:other,web\nadm:x:4:\n", 0o644},
		{"etc/dir/file", "in a directory of the image\n", 0o644},
		{"bin/script", "no interpreter line\n", 0o755},
		{"bin/no-loader", "#!/lib/not-there\n", 0o755},
		{"bin/plain", "not executable\n", 0o644},
		{"run/app/socket-goes-here", "", 0o644},
	} {
		addFile(tree, f.path, &erofstest.Node{
			Mode: erofs.TypeRegular | f.mode, Size: uint64(len(f.content)), Offset: uint64(len(second)), Slot: 2,
		})
		second = pad(append(second, f.content...))
	}
	addFile(tree, "bin/workload", &erofstest.Node{Mode: erofs.TypeRegular | 0o755, Size: uint64(len(program)), Slot: 1})
	// Files that the guest's are mounted over, in each way that an image may have made hard.
	addFile(tree, "etc/hosts", &erofstest.Node{Mode: erofs.TypeSymlink | 0o777, Target: "../../../../../fixed/hosts"})
	addFile(tree, "fixed/.keep", &erofstest.Node{Mode: erofs.TypeRegular | 0o444})
	tree.Children["fixed"].Mode = erofs.TypeDir | 0o555
	addFile(tree, "etc/hostname", &erofstest.Node{Mode: erofs.TypeSymlink | 0o777, Target: "hostname"})
	// As systemd leaves it: a link to a file that is made at run time.
	addFile(tree, "etc/resolv.conf", &erofstest.Node{Mode: erofs.TypeSymlink | 0o777, Target: "../run/systemd/resolve/stub-resolv.conf"})
	addFile(tree, "proc/.keep", &erofstest.Node{Mode: erofs.TypeRegular | 0o644})

	first := pad(program)
	var meta bytes.Buffer
	uuid, err := hex.DecodeString(strings.ReplaceAll(l.uuid, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	opts := erofs.Options{UUID: [16]byte(uuid), Devices: []erofs.Device{
		{Tag: "first", Size: int64(len(first))}, {Tag: "second", Size: int64(len(second))},
	}}
	if err := erofs.Write(&meta, tree.Tree(), opts); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"meta": pad(meta.Bytes()), "first": first, "pack": partitioned(second)} {
		if err := os.WriteFile(filepath.Join(l.dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func addFile(tree *erofstest.Node, path string, file *erofstest.Node) {
	dir, name := filepath.Split(path)
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		next := tree.Children[part]
		if next == nil {
			next = &erofstest.Node{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofstest.Node{}}
			tree.Children[part] = next
		}
		tree = next
	}
	tree.Children[name] = file
}

// pad fills content up to a sector.
func pad(content []byte) []byte {
	const sector = 512
	return append(content, make([]byte, (sector-len(content)%sector)%sector)...)
}

// partitioned is a disk with an old style partition table whose second partition is content.
func partitioned(content []byte) []byte {
	const start = 64 // sectors
	disk := make([]byte, start*512)
	for i, p := range []struct{ first, sectors uint32 }{{1, 1}, {start, uint32(len(content) / 512)}} {
		entry := disk[446+16*i:]
		entry[4] = 0x83
		binary.LittleEndian.PutUint32(entry[8:], p.first)
		binary.LittleEndian.PutUint32(entry[12:], p.sectors)
	}
	disk[510], disk[511] = 0x55, 0xaa
	return append(disk, content...)
}
