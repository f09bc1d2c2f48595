package image

import (
	"bytes"
	"io"
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
		for _, layer := range [][]byte{below, tar} {
			x, err := scan(bytes.NewReader(layer), io.Discard, digestOf(layer), limits)
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
		if err := erofs.Write(io.Discard, merged.root, erofs.Options{Devices: devices}); err != nil {
			t.Fatalf("a merged tree cannot be written: %v", err)
		}
	})
}

func FuzzIndex(f *testing.F) {
	x, err := scan(bytes.NewReader(imagetest.Tar(imagetest.File("a", "1").Xattr("user.x", "y"), imagetest.Link("b", "a"))),
		io.Discard, digestOf(imagetest.Tar(imagetest.File("a", "1").Xattr("user.x", "y"), imagetest.Link("b", "a"))), Limits{}.withDefaults())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(x.encode()[indexHeader:], uint64(2))
	f.Fuzz(func(_ *testing.T, payload []byte, count uint64) {
		// With a checksum that is right, so that the decoder is reached.
		b := append((&index{}).encode(), payload...)
		putHeader(b, 0, count)
		_, _ = decodeIndex(b)
	})
}
