package vmtest_test

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// layers returns layers with something of everything in them: a change of a file in every layer, deletions, an
// opaque directory, replacements of one kind by another, links, devices, owners, modes, and sizes around the
// blocks of tar, of disks and of pages. It takes at least 9 of them.
func layers(count int, program []byte) [][]imagetest.Entry {
	sizes := []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000, 300_000}
	out := make([][]imagetest.Entry, count)
	for i := range out {
		content := strings.Repeat(fmt.Sprintf("layer %d\n", i), sizes[i%len(sizes)]/8+1)[:sizes[i%len(sizes)]]
		out[i] = []imagetest.Entry{
			imagetest.Dir("data"),
			imagetest.File(fmt.Sprintf("data/own-%02d", i), content).Owner(1000+i, 2000+i).Mode(0o600 + int64(i%8)),
			imagetest.File("data/newest", fmt.Sprint("written by layer ", i)).Time(time.Unix(int64(1600000000+i), 0)),
		}
		if i%3 == 1 {
			out[i] = append(out[i], imagetest.Whiteout(fmt.Sprintf("data/own-%02d", i-1)))
		}
	}
	add := func(layer int, entries ...imagetest.Entry) { out[layer] = append(out[layer], entries...) }
	add(0, imagetest.Dir("bin"), imagetest.File("bin/tree", string(program)).Mode(0o755))
	add(1, imagetest.Dir("data/opaque"), imagetest.File("data/opaque/gone", "x"), imagetest.Dir("data/dir"), imagetest.File("data/dir/gone", "x"))
	add(2, imagetest.Symlink("data/link", "own-02"), imagetest.Char("data/null", 1, 3), imagetest.FIFO("data/fifo"))
	add(5, imagetest.File("data/first-name", "two names"), imagetest.Link("data/second-name", "data/first-name"))
	add(count-9, imagetest.Opaque("data/opaque"), imagetest.Dir("data/opaque").Mode(0o1777), imagetest.File("data/opaque/new", "y"))
	add(count-7, imagetest.File("data/link", "a file now"), imagetest.Whiteout("data/fifo"))
	add(count-5, imagetest.File("data/dir", "a file now").Mode(0o4755))
	add(count-3, imagetest.Link("data/third-name", "data/own-05"))
	add(count-1, imagetest.File("data/big", strings.Repeat("0123456789abcdef", 1<<16)), imagetest.Dir("data/empty").Owner(5, 6))
	return out
}

// merge tells what testdata/tree prints for the layers. It is its own idea of OCI's rules, so that a mistake of
// package image is not made twice.
func merge(layers [][]imagetest.Entry) []string {
	tree := map[string]*node{}
	for _, layer := range layers {
		for _, e := range layer { // deletions act on what the layers below made
			dir, base := path.Split(e.Header.Name)
			if base == ".wh..wh..opq" {
				removeBelow(tree, path.Clean(dir))
			} else if name, ok := strings.CutPrefix(base, ".wh."); ok {
				removeBelow(tree, dir+name)
				delete(tree, dir+name)
			}
		}
		for _, e := range layer {
			name := e.Header.Name
			switch {
			case strings.HasPrefix(path.Base(name), ".wh."):
				continue
			case e.Header.Typeflag == tar.TypeLink:
				tree[name] = tree[e.Header.Linkname]
			default:
				if e.Header.Typeflag != tar.TypeDir {
					removeBelow(tree, name)
				}
				tree[name] = &node{e}
			}
		}
	}
	return describe(tree)
}

// node is what one or more names lead to.
type node struct{ entry imagetest.Entry }

func removeBelow(tree map[string]*node, dir string) {
	maps.DeleteFunc(tree, func(name string, _ *node) bool { return strings.HasPrefix(name, dir+"/") })
}

func describe(tree map[string]*node) []string {
	links := map[*node]int{}
	for _, n := range tree {
		links[n]++
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		n := tree[name]
		h := n.entry.Header
		mode, detail := fs.FileMode(h.Mode&0o777), ""
		for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if h.Mode&bit != 0 {
				mode |= flag
			}
		}
		switch h.Typeflag {
		case tar.TypeReg:
			detail = fmt.Sprintf("%d links, %d bytes, %x", links[n], len(n.entry.Body), sha256.Sum256(n.entry.Body))
		case tar.TypeDir:
			mode |= fs.ModeDir
		case tar.TypeSymlink:
			mode |= fs.ModeSymlink
			detail = h.Linkname
		case tar.TypeChar:
			mode |= fs.ModeDevice | fs.ModeCharDevice
			detail = fmt.Sprint(h.Devmajor<<8 | h.Devminor)
		case tar.TypeFifo:
			mode |= fs.ModeNamedPipe
		}
		out = append(out, fmt.Sprintf("/%s %v %d:%d %d %s", name, mode, h.Uid, h.Gid, h.ModTime.Unix(), detail))
	}
	return out
}
