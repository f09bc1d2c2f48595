package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"testing"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// Whatever a layer holds, it is refused or merged, and what is merged can be written and survives the
// index on disk; and its files have the content that archive/tar reads of them.
func FuzzLayer(f *testing.F) {
	for _, c := range imagetest.Corpus() {
		for _, entries := range c.Layers {
			if b := imagetest.Tar(entries...); len(b) < 16<<10 {
				f.Add(b)
			}
		}
	}
	limits := Limits{LayerBytes: 1 << 20, ImageBytes: 1 << 20, Entries: 500, NameBytes: 1 << 16}.withDefaults()
	below := imagetest.Tar(imagetest.File("a", "1"), imagetest.Dir("d"), imagetest.File("d/a", "1"), imagetest.Symlink("l", "/d"), imagetest.Symlink("loop", "loop"))
	f.Fuzz(func(t *testing.T, b []byte) {
		merged := newTree(limits)
		devices := []erofs.Device{}
		for _, layer := range [][]byte{below, fixChecksums(b)} {
			x, err := scanReader(bytes.NewReader(layer), digestOf(layer), limits)
			if err != nil {
				return
			}
			again, err := decodeIndex(x.encode())
			if err != nil || !bytes.Equal(again.encode(), x.encode()) {
				t.Fatalf("index does not survive: %v", err)
			}
			sameContents(t, layer, x)
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

// sameContents compares what the entries of a layer say of their contents' places with what archive/tar reads.
func sameContents(t *testing.T, layer []byte, x *index) {
	t.Helper()
	next, stop := iter.Pull(x.entries(kindInode))
	defer stop()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err != nil {
			return // at the end, or scan would have said so
		}
		if e, err := newEntry(h, 0); err != nil || e == nil || e.kind != kindInode {
			continue
		}
		e, _ := next()
		if e.inode.Mode&erofs.TypeMask != erofs.TypeRegular {
			continue
		}
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%q: archive/tar: %v", e.path, err)
		}
		got := make([]byte, e.inode.Size)
		extents := e.inode.Extents
		if !e.inode.Sparse {
			extents = []erofs.Extent{{Size: e.inode.Size, Offset: e.inode.Offset}}
		}
		for _, part := range extents {
			copy(got[part.Start:part.Start+part.Size], layer[part.Offset:])
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%q: %d bytes, archive/tar reads %d others", e.path, len(got), len(want))
		}
	}
}

// A manifest and a config make an image or an error, and what they make is consistent.
func FuzzManifest(f *testing.F) {
	for _, b := range []*imagetest.Builder{
		imagetest.New().Layer(imagetest.File("a", "1")), imagetest.New().Layer().Layer().Docker(),
		imagetest.New().Layer().Compress(imagetest.Zstd).Config(func(c map[string]any) { c["Env"] = []string{"A=b"} }),
	} {
		img := b.Build()
		f.Add(img.Manifest, img.Config, true)
	}
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), []byte(`{}`), false)
	f.Fuzz(func(t *testing.T, manifest, config []byte, mend bool) {
		if mend {
			// The descriptor of the config made right, or nothing gets past it.
			var m map[string]any
			if json.Unmarshal(manifest, &m) != nil || m == nil {
				return
			}
			d, ok := m["config"].(map[string]any)
			if !ok {
				return
			}
			d["digest"], d["size"] = digestOf(config), len(config)
			manifest, _ = json.Marshal(m)
		}
		s, err := parseSpec(digestOf(manifest), manifest, config, Limits{}.withDefaults())
		if err != nil {
			if !errors.Is(err, ErrRefused) && !errors.Is(err, ErrCorrupt) || len(err.Error()) > 2000 {
				t.Fatalf("error of %d bytes: %v", len(err.Error()), err)
			}
			return
		}
		if len(s.blobs) == 0 || len(s.blobs) > maxLayers || len(s.blobs) != len(s.diffIDs) || s.parsed.OS != "linux" {
			t.Fatalf("accepted: %d blobs, %d diffIDs, %q", len(s.blobs), len(s.diffIDs), s.parsed.OS)
		}
		for i, d := range s.blobs {
			if _, err := digestHex(d.Digest); err != nil || d.Size < 0 {
				t.Fatalf("accepted blob %+v", d)
			}
			if _, err := digestHex(s.diffIDs[i]); err != nil {
				t.Fatalf("accepted diffID %q", s.diffIDs[i])
			}
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
	f.Fuzz(func(t *testing.T, payload []byte, count uint64) {
		// With a checksum that is right, so that the decoder is reached.
		b := append((&index{}).encode(), payload...)
		putHeader(b, 0, count, uint64(len(payload)), checksum(payload))
		x, err := decodeIndex(b)
		if err != nil {
			return
		}
		entries := 0
		for range x.entries(kindInode, kindDir, kindLink, kindWhiteout, kindOpaque) {
			entries++
		}
		if entries != x.count {
			t.Fatalf("%d entries, and the index says %d", entries, x.count)
		}
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
