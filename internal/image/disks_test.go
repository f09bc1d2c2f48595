package image_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

func TestDisks(t *testing.T) {
	for _, tt := range []struct {
		layers, drives int
		want           string // drive.partition of each layer
	}{
		{1, 8, "0.0"},
		{3, 3, "0.0 1.0 2.0"},
		{3, 2, "0.0 1.0 2.1"},
		{4, 1, "0.0 1.1 1.2 1.3"},
		{2, 0, "0.1 0.2"},
	} {
		s := open(t, t.TempDir())
		img := pull(t, s, layered(tt.layers).Build())
		set, err := s.Disks(img, tt.drives)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, ref := range set.Layers {
			got = append(got, fmt.Sprintf("%d.%d", ref.Drive, ref.Partition))
			if drive := set.Drives[ref.Drive]; drive.Pack != (ref.Partition > 0) || !drive.Pack && drive.Path != img.Layers[i].Path {
				t.Errorf("%d layers, %d drives: layer %d is on %+v", tt.layers, tt.drives, i, drive)
			}
		}
		if strings.Join(got, " ") != tt.want || set.Metadata != img.Metadata {
			t.Errorf("%d layers, %d drives: got %v, want %s", tt.layers, tt.drives, got, tt.want)
		}
	}
	s := open(t, t.TempDir())
	if _, err := s.Disks(pull(t, s, layered(1).Build()), -1); err == nil {
		t.Error("-1 drives: no error")
	}
}

func TestPackDisk(t *testing.T) {
	for _, n := range []int{1, 12, 128} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			src := layered(n).Build()
			var first []byte
			for range 2 {
				s := open(t, t.TempDir())
				img := pull(t, s, src)
				set, err := s.Disks(img, 0)
				if err != nil {
					t.Fatal(err)
				}
				disk := read(t, set.Drives[0].Path)
				parts := readGPT(t, disk)
				if len(parts) != n {
					t.Fatalf("%d partitions, want %d", len(parts), n)
				}
				for i, p := range parts {
					tar := src.Tars[i]
					if p.start%4096 != 0 || p.size < int64(len(tar)) || p.size-int64(len(tar)) >= 512 {
						t.Errorf("partition %d: %+v for %d bytes", i+1, p, len(tar))
					}
					if !bytes.Equal(disk[p.start:][:len(tar)], tar) {
						t.Errorf("partition %d is not its layer", i+1)
					}
				}
				if first == nil {
					first = disk
				}
				if !bytes.Equal(disk, first) {
					t.Error("two stores made different disks of the same layers")
				}
				info, err := os.Stat(set.Drives[0].Path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Disks(img, 0); err != nil {
					t.Fatal(err)
				}
				if again, err := os.Stat(set.Drives[0].Path); err != nil || !os.SameFile(info, again) {
					t.Errorf("the disk was made again: %v", err)
				}
			}
		})
	}
}

// What other people's tools read in the table.
func TestPackDiskWithPartx(t *testing.T) {
	partx, err := exec.LookPath("partx")
	if err != nil {
		t.Skip("needs partx: ", err)
	}
	s := open(t, t.TempDir())
	img := pull(t, s, layered(20).Build())
	set, err := s.Disks(img, image.LayerDrives)
	if err != nil {
		t.Fatal(err)
	}
	path := set.Drives[image.LayerDrives].Path
	out, err := exec.Command(partx, "--raw", "--noheadings", "-o", "NR,START,SECTORS,NAME,SCHEME", path).CombinedOutput()
	if err != nil {
		t.Fatalf("partx: %v\n%s", err, out)
	}
	var want strings.Builder
	for i, p := range readGPT(t, read(t, path)) {
		fmt.Fprintf(&want, "%d %d %d %.36s gpt\n", i+1, p.start/512, p.size/512, img.DiffIDs[image.LayerDrives+i][7:])
	}
	if string(out) != want.String() {
		t.Errorf("partx read\n%s\nwant\n%s", out, want.String())
	}
}

func TestPackRefusesChangedLayer(t *testing.T) {
	s := open(t, t.TempDir())
	img := pull(t, s, layered(2).Build())
	if err := os.Chmod(img.Layers[1].Path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img.Layers[1].Path, 512); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disks(img, 1); err == nil || !strings.Contains(err.Error(), "has 512 bytes") {
		t.Errorf("got %v, want an error about the size", err)
	}
}

// layered is an image of n layers; each puts one file of its own, and one that the next one replaces.
func layered(n int) *imagetest.Builder {
	b := imagetest.New()
	for i := range n {
		b.Layer(
			imagetest.File(fmt.Sprintf("d%d/f", i), strings.Repeat(fmt.Sprint(i), 700*(i%7))),
			imagetest.File("top", fmt.Sprint(i)),
		)
	}
	return b
}

type extent struct{ start, size int64 }

// readGPT reads a partition table by the letter of the specification, checksums and backup included.
func readGPT(t *testing.T, disk []byte) []extent {
	t.Helper()
	le := binary.LittleEndian
	last := uint64(len(disk)/512 - 1)
	if len(disk)%4096 != 0 || disk[510] != 0x55 || disk[511] != 0xaa || disk[450] != 0xee || le.Uint32(disk[454:]) != 1 || le.Uint32(disk[458:]) != uint32(last) {
		t.Errorf("protective MBR: % x", disk[446:512])
	}
	var tables [][]byte
	for _, at := range []uint64{1, last} {
		h := slices.Clone(disk[at*512:][:512])
		sum := le.Uint32(h[16:])
		clear(h[16:20])
		if string(h[:8]) != "EFI PART" || le.Uint32(h[8:]) != 0x10000 || le.Uint32(h[12:]) != 92 || sum != crc32.ChecksumIEEE(h[:92]) {
			t.Fatalf("header at %d: % x", at, h[:92])
		}
		if le.Uint64(h[24:]) != at || le.Uint64(h[32:]) != last+1-at {
			t.Errorf("header at %d says it is at %d, the other at %d", at, le.Uint64(h[24:]), le.Uint64(h[32:]))
		}
		table := disk[le.Uint64(h[72:])*512:][:128*128]
		if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) || le.Uint32(h[80:]) != 128 || le.Uint32(h[84:]) != 128 {
			t.Errorf("table of the header at %d has another checksum", at)
		}
		if first, end := le.Uint64(h[40:]), le.Uint64(h[48:]); first != 34 || end != last-33 {
			t.Errorf("usable sectors %d to %d of %d", first, end, last+1)
		}
		tables = append(tables, table)
	}
	if !bytes.Equal(tables[0], tables[1]) {
		t.Error("backup table differs")
	}
	var list []extent
	seen := map[string]bool{}
	for entry := range slices.Chunk(tables[0], 128) {
		if bytes.Equal(entry[:16], make([]byte, 16)) {
			continue
		}
		from, to := le.Uint64(entry[32:]), le.Uint64(entry[40:])
		if from < 34 || to > last-33 || len(list) > 0 && int64(from)*512 < list[len(list)-1].start+list[len(list)-1].size {
			t.Errorf("partition from %d to %d overlaps", from, to)
		}
		if id := string(entry[16:32]); seen[id] {
			t.Error("two partitions have one GUID")
		} else {
			seen[id] = true
		}
		list = append(list, extent{int64(from) * 512, int64(to-from+1) * 512})
	}
	return list
}
