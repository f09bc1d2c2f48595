package image

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// Whatever a layer holds, it is refused or merged, and what is merged can be written and survives the
// index on disk.
func FuzzLayer(f *testing.F) {
	f.Add(imagetest.Tar(imagetest.Dir("d"), imagetest.File("d/a", "1"), imagetest.Link("b", "d/a"), imagetest.Symlink("l", "d")))
	f.Add(imagetest.Tar(imagetest.Whiteout("d/x"), imagetest.Opaque("d"), imagetest.File("l/y", "").Xattr("user.a", "b")))
	f.Add(imagetest.Tar(imagetest.Char("c", 1, 3), imagetest.Block("b", 8, 0), imagetest.FIFO("f"), imagetest.Dir("./")))
	limits := Limits{LayerBytes: 1 << 20, ImageBytes: 1 << 20, Entries: 500, NameBytes: 1 << 16}.withDefaults()
	below := imagetest.Tar(imagetest.File("d/a", "1"), imagetest.Symlink("l", "/d"), imagetest.Symlink("loop", "loop"))
	f.Fuzz(func(t *testing.T, tar []byte) {
		merged := newTree(limits)
		devices := []erofs.Device{}
		for _, layer := range [][]byte{below, fixChecksums(tar)} {
			x, err := scanReader(bytes.NewReader(layer), digestOf(layer), limits)
			if err != nil {
				return
			}
			again, err := decodeIndex(x.encode())
			if err != nil || !bytes.Equal(again.encode(), x.encode()) {
				t.Fatalf("index does not survive: %v", err)
			}
			devices = append(devices, erofs.Device{Tag: "x", Size: x.size})
			if err := merged.apply(again, uint16(len(devices))); err != nil {
				return
			}
		}
		merged.prune()
		if err := erofs.Write(io.Discard, merged.Tree, erofs.Options{Devices: devices}); err != nil {
			t.Fatalf("a merged tree cannot be written: %v", err)
		}
	})
}

func FuzzIndex(f *testing.F) {
	x, err := scanReader(bytes.NewReader(imagetest.Tar(imagetest.File("a", "1").Xattr("user.x", "y"), imagetest.Link("b", "a"))),
		digestOf(imagetest.Tar(imagetest.File("a", "1").Xattr("user.x", "y"), imagetest.Link("b", "a"))), Limits{}.withDefaults())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(x.encode()[indexHeader:], uint64(2))
	f.Fuzz(func(_ *testing.T, payload []byte, count uint64) {
		// With a checksum that is right, so that the decoder is reached.
		b := append((&index{}).encode(), payload...)
		putHeader(b, 0, count, uint64(len(payload)), checksum(payload))
		_, _ = decodeIndex(b)
	})
}

// fixChecksums makes the checksums of what looks like headers right, or no mutation would get past them.
func fixChecksums(b []byte) []byte {
	b = bytes.Clone(b)
	for block := range slices.Chunk(b, 512) {
		if len(block) < 512 || string(block[257:262]) != "ustar" {
			continue
		}
		copy(block[148:156], "        ")
		sum := 0
		for _, c := range block {
			sum += int(c)
		}
		copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}

// Layers of entries with few names, so that they meet: three bytes are one entry. The merge must end in a
// tree or a refusal, and the place of whiteouts in a layer must mean nothing.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 0, 9, 0, 0, 2, 2, 1, 4, 3, 2, 5, 1, 1, 9, 0, 0, 3, 0, 0, 1, 2, 2})
	limits := Limits{Entries: 300}.withDefaults()
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 600 {
			return
		}
		build := func(order func([]entry) []entry) (string, error) {
			merged := newTree(limits)
			for slot, entries := range scripted(script) {
				if err := merged.apply(indexOf(order(entries)), uint16(slot+1)); err != nil {
					return "", err
				}
			}
			merged.prune()
			var out bytes.Buffer
			devices := slices.Repeat([]erofs.Device{{Tag: "x", Size: 1 << 20}}, 1000)
			if err := erofs.Write(&out, merged.Tree, erofs.Options{Devices: devices}); err != nil {
				t.Fatalf("a merged tree cannot be written: %v", err)
			}
			return out.String(), nil
		}
		a, errA := build(func(e []entry) []entry { return e })
		if errA != nil && !errors.Is(errA, ErrRefused) {
			t.Fatal(errA)
		}
		b, errB := build(func(e []entry) []entry {
			slices.SortStableFunc(e, func(x, y entry) int { return cmp.Compare(whiteoutLast(x), whiteoutLast(y)) })
			return e
		})
		if a != b || (errA == nil) != (errB == nil) {
			t.Fatalf("the place of whiteouts changes the tree: %v, %v", errA, errB)
		}
	})
}

func indexOf(entries []entry) *index {
	var w indexWriter
	for i := range entries {
		w.add(&entries[i])
	}
	return w.index(0)
}

func whiteoutLast(e entry) int {
	if e.kind == kindWhiteout || e.kind == kindOpaque {
		return 1
	}
	return 0
}

// scripted makes layers of a script.
func scripted(script []byte) [][]entry {
	names := []string{"a", "b", "a/a", "a/b", "b/a", "a/a/a", "b/b/a", "c", "c/a", "c/b/a", "d/a"}
	targets := []string{"a", "/b", "..", "../b", "a/a", "c", "/", "b/../a", "missing/x"}
	list := [][]entry{nil}
	for step := range slices.Chunk(script, 3) {
		if len(step) < 3 {
			break
		}
		e := entry{path: names[int(step[1])%len(names)]}
		target := targets[int(step[2])%len(targets)]
		n := erofs.Inode{Mode: uint16(step[2]) | erofs.TypeRegular, Size: uint64(step[2]), Mtime: int64(len(list[0]))}
		switch step[0] % 10 {
		case 0:
			e.kind, n.Mode, n.Size = kindDir, uint16(step[2])|erofs.TypeDir, 0
			e.inode = n
		case 1, 2:
			e.inode = n
		case 3:
			n.Mode, n.Size, n.Target = 0o777|erofs.TypeSymlink, 0, target
			e.inode = n
		case 4:
			e.kind, e.link = kindLink, target
		case 5:
			e.kind = kindWhiteout
		case 6:
			e.kind = kindOpaque
		case 7:
			n.Mode, n.Size = erofs.TypeChar, 0
			e.inode = n
		case 8:
			e.kind, e.path, n.Mode, n.Size = kindDir, "", uint16(step[2])|erofs.TypeDir, 0
			e.inode = n
		case 9:
			list = append(list, nil)
			continue
		}
		list[len(list)-1] = append(list[len(list)-1], e)
	}
	return list
}
