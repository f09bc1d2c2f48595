package image_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// The metadata of one image, byte for byte. Stores and hosts of different versions share images by their
// identity, so whoever changes a byte for layers that were accepted before changes image.Converter, and only
// then this sum.
func TestMetadataIsTheConverters(t *testing.T) {
	const converter, want = "pinnace-erofs-3", "9543b585fb07128f34397f9c506ec86993ddfdb29fcd10b94ecb3a50cbb54163"
	if image.Converter != converter {
		t.Fatalf("converter is %s: give this test its sum", image.Converter)
	}
	img := pull(t, open(t, t.TempDir()), variety().Build())
	if img.MetadataSHA256 != want {
		t.Errorf("metadata is %s, want %s", img.MetadataSHA256, want)
	}
}

// variety is an image with every kind of entry, and directories of many sizes.
func variety() *Builder {
	entries := []Entry{Dir(".").Mode(0o750).Owner(1, 2)}
	for _, n := range []int{0, 1, 20, 100, 3000} {
		dir := fmt.Sprintf("dir-%d", n)
		entries = append(entries, Dir(dir).Time(time.Unix(int64(n), int64(n))))
		for i := range n {
			name := fmt.Sprintf("%s/%c%0*d", dir, "!-+az"[i%5], 1+i%9, i)
			entries = append(entries, File(name, strings.Repeat("x", i%700)).Owner(i, 1<<32-2-i).Mode(int64(i%0o10000)))
		}
	}
	return New().Layer(entries...).Layer(
		Symlink("s", "dir-1"), Symlink("long", strings.Repeat("x/", 2000)), Symlink("block", strings.Repeat("t", 448)),
		File("s/through", "1"), Link("s/again", "s/through"), Link("dir-0/low", "dir-20/!0"),
		Char("null", 1, 3), Char("dropped", 8, 0), FIFO("p").Xattr("user.a", "b").Xattr("security.capability", "\x01\x00"),
		Dir("x").Xattr("user.long", strings.Repeat("v", 3000)), File("x/y", "").Xattr("user.empty", ""),
	).Layer(
		Whiteout("dir-100"), File("dir-100/new", "2"), Opaque("dir-20"), File("dir-20/new", "3"), Dir("long"),
		Whiteout("dir-3000/z4"), File("implicit/parents/f", strings.Repeat("f", 5000)),
	)
}
