package erofs_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
)

// Whatever the tree, what was written is what the reader of another project finds, or Write said why not.
func FuzzWrite(f *testing.F) {
	for kind := range byte(8) {
		f.Add([]byte{kind, 1, 2, 3, 0, 0, 200, 9, 1, 1, 3, 7, kind, 9, 9, 9}, kind)
	}
	f.Add(bytes.Repeat([]byte{0, 1, 0, 250, 1, 3, 77, 12}, 40), byte(1))
	f.Add(bytes.Repeat([]byte{2, 200, 199, 198, 5, 1, 2, 3}, 60), byte(2))
	device := make([]byte, 128<<10)
	for i := range device {
		device[i] = byte(i>>9) ^ byte(i)
	}
	f.Fuzz(func(t *testing.T, script []byte, size byte) {
		block := 512 << (size % 4)
		root := grown(script, block)
		var out, again bytes.Buffer
		opts := erofs.Options{BlockSize: block, Devices: []erofs.Device{{Tag: "device", Size: int64(len(device))}}}
		tree := root.Tree()
		if err := erofs.Write(&out, tree, opts); err != nil {
			if out.Len() > 0 {
				t.Fatalf("%d bytes of a refused tree: %v", out.Len(), err)
			}
			return
		}
		if err := erofs.Write(&again, tree, opts); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
			t.Fatalf("the second writing differs: %v", err)
		}
		fsys, err := reader.Open(bytes.NewReader(out.Bytes()), reader.WithExtraDevices(bytes.NewReader(device)))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := walk(t, fsys), describe(root, device); !slices.Equal(got, want) {
			t.Fatalf("tree differs:\n%s", diff(got, want))
		}
	})
}

// grown makes a tree of a script of eight bytes for each name: kind, properties, and where it goes.
func grown(script []byte, block int) *erofstest.Node {
	root := dir(map[string]*erofstest.Node{})
	dirs, all := []*erofstest.Node{root}, []*erofstest.Node{}
	for step := range slices.Chunk(script, 8) {
		// A hundred names are enough for every layout, and quick.
		if len(step) < 8 || len(all) > 100 {
			break
		}
		a, b := int(step[1]), int(step[2])
		n := &erofstest.Node{UID: uint32(a) << 20, GID: uint32(b), Mtime: int64(int8(step[3])) << 30, MtimeNsec: uint32(a) * 4_000_000}
		mode := uint16(step[4]) << 2
		name := strings.Repeat(string([]byte{'!' + step[5]%90}), 1+int(step[6])%64) + fmt.Sprint(len(all))
		if name = strings.ReplaceAll(name, "/", "_"); step[6] > 250 {
			name = strings.Repeat("n", 250) + fmt.Sprint(len(all))
		}
		switch step[0] % 8 {
		case 0, 1:
			n.Mode, n.Size, n.Offset, n.Slot = mode|erofs.TypeRegular, uint64(a*b), uint64(step[7]%16*2)*uint64(block), 1
			if n.Size == 0 {
				n.Offset, n.Slot = 0, 0
			}
		case 2:
			n.Mode, n.Children = mode|erofs.TypeDir, map[string]*erofstest.Node{}
		case 3:
			n.Mode, n.Target = erofs.TypeSymlink|0o777, strings.Repeat("t", 1+a*b%5000)
		case 4:
			n.Mode, n.Major, n.Minor = mode|erofs.TypeChar, uint32(a)*16, uint32(b)*4000
		case 5:
			n.Mode = mode | erofs.TypeFIFO
			n.Xattrs = []erofs.Xattr{{Name: "security." + name[:1+a%len(name)], Value: strings.Repeat("v", a*b%5000)}, {Name: "user.x", Value: string(step)}}
		case 6: // another name of what there is
			if len(all) > 0 && all[a%len(all)].Mode&erofs.TypeMask != erofs.TypeDir {
				n = all[a%len(all)]
			} else {
				n.Mode = mode | erofs.TypeSocket
			}
		case 7:
			n.Mode, n.Size, n.Slot, n.Sparse = mode|erofs.TypeRegular, uint64(64*block-b), 1, true
			for at := a % 4; at < 63 && step[3] > 0; at += 1 + int(step[3]) {
				n.Extents = append(n.Extents, erofs.Extent{Start: uint64(at * block), Size: uint64(block), Offset: uint64(at % 16 * block)})
			}
		}
		where := dirs[int(step[7])%len(dirs)]
		where.Children[name] = n
		all = append(all, n)
		if n.Mode&erofs.TypeMask == erofs.TypeDir {
			dirs = append(dirs, n)
		}
	}
	return root
}
