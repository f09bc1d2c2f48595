package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// A sparse file of any of PAX's forms has the content that archive/tar reads of it, seen through the file
// system of another project's reader and through the tree that people look at.
func TestSparseFiles(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	block := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return string(b)
	}
	many := []Part{}
	for i := range int64(300) {
		many = append(many, Part{Start: 1024 * i, Content: block(512)})
	}
	var entries []Entry
	for _, form := range []string{"0.0", "0.1", "1.0"} {
		for i, parts := range [][]Part{
			{At(4096, block(4096))},
			{At(0, block(8192)), At(1<<20, block(512))},
			{At(512, block(512)), At(1024, block(512)), At(99*512, block(1024)), At(99_997, "")},
			{At(0, ""), At(16384, block(16384)), At(32768, block(8192)), At(99_840, block(157))},
			{At(0, block(99_997))},
			{At(99_997, "")},
			many,
		} {
			size := int64(99_997)
			if i == 1 || i == 6 {
				size = 2 << 20
			}
			entries = append(entries, File(fmt.Sprintf("%s-%d-before", form, i), block(700)),
				Sparse(form, fmt.Sprintf("%s-%d", form, i), size, parts...), File(fmt.Sprintf("%s-%d-after", form, i), block(3)))
		}
	}
	s := open(t, t.TempDir())
	img := pull(t, s, New().RawLayer(Tar(entries...)).Build())
	fsys := metadata(t, img)
	tree, err := s.Tree(img)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	files := 0
	for r := tar.NewReader(bytes.NewReader(Tar(entries...))); ; files++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.ReadFile(fsys, h.Name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes %x, %v; want %d bytes %x", h.Name, len(got), sha256.Sum256(got), err, len(want), sha256.Sum256(want))
		}
		f, err := tree.Stat(h.Name)
		if err != nil {
			t.Fatal(err)
		}
		content, err := tree.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(content); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s in the tree: %d bytes, %v; want %d", h.Name, len(got), err, len(want))
		}
	}
	if files != len(entries) {
		t.Errorf("%d files, want %d", files, len(entries))
	}
}

// What GNU tar makes of a file with holes, in each of its forms.
func TestSparseFilesOfGNUTar(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs tar: ", err)
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := make([]byte, 3<<20)
	for _, at := range []int{0, 1 << 20, 1<<20 + 8192, 2<<20 + 4096} {
		copy(want[at:], strings.Repeat(fmt.Sprint(at), 3000)[:3000])
		if _, err := f.WriteAt(want[at:at+3000], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(want))); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"0.0", "0.1", "1.0"} {
		archive, err := exec.Command("tar", "-C", dir, "--format=pax", "--sparse", "--sparse-version="+version, "-cf", "-", "disk").Output()
		if err != nil {
			t.Skip("tar: ", err)
		}
		if len(archive) > len(want)/2 {
			t.Skipf("tar made an archive of %d bytes: the file system of the test keeps no holes", len(archive))
		}
		got, err := fs.ReadFile(metadata(t, pull(t, open(t, t.TempDir()), New().RawLayer(archive).Build())), "disk")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("version %s: content differs: %d bytes, %v", version, len(got), err)
		}
	}
}
