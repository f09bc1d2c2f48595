package image

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/erofs"
)

// many is the index of a layer of n entries in the shapes that real images have and worse: many files in a
// directory, a directory for every file, names in no order, links of both kinds.
func many(shape string, n int) *index {
	var w indexWriter
	e := entry{inode: erofs.Inode{Mode: erofs.TypeRegular | 0o644, Mtime: 1700000000, Size: 5000}}
	dir := entry{kind: kindDir, inode: erofs.Inode{Mode: erofs.TypeDir | 0o755, Mtime: 1700000000}}
	for i := 0; w.count < n; i++ {
		e.inode.Offset = uint64(i) * 5632
		switch shape {
		case "packages": // node_modules
			if i%20 == 0 {
				dir.path = fmt.Sprintf("usr/lib/node_modules/package-%d", i/20)
				w.add(&dir)
			}
			e.path = fmt.Sprintf("%s/module-%d.js", dir.path, i)
		case "one directory":
			e.path = fmt.Sprintf("var/cache/object-%08x", uint32(i)*2654435761)
		case "directories":
			e.path = fmt.Sprintf("%d/%d/f", i%1000, i)
		case "symbolic links":
			e.inode.Mode, e.inode.Target = erofs.TypeSymlink|0o777, fmt.Sprintf("../../target-%d", i)
			e.path = fmt.Sprintf("etc/alternatives/%d/%d", i%1000, i)
		case "attributes":
			e.inode.Xattrs = []erofs.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}
			e.path = fmt.Sprintf("usr/bin/%d/%d", i%1000, i)
		case "long names": // as many bytes of them as may be
			e.path = fmt.Sprintf("%d/%s%d", i%2, strings.Repeat("n", 80), i)
		default:
			panic(shape)
		}
		w.add(&e)
	}
	return w.index(1 << 40)
}

// atFirstWrite calls once when the first byte comes.
type atFirstWrite struct {
	io.Writer
	once func()
}

func (w *atFirstWrite) Write(p []byte) (int, error) {
	if w.once != nil {
		w.once()
		w.once = nil
	}
	return w.Writer.Write(p)
}

// Merging and writing hold at most 300 bytes for every entry, which leaves room for the garbage collector: a
// hostile image cannot take more memory than its number of entries buys.
func TestMemoryOfEntries(t *testing.T) {
	entries := 100_000
	if os.Getenv("PINNACE_E2E") == "1" {
		entries = 1_000_000 // takes half a minute
	}
	for _, shape := range []string{"packages", "one directory", "directories", "symbolic links", "attributes", "long names"} {
		n := entries
		if shape == "directories" {
			n = entries / 2 // the directories are implied
		}
		n -= 3000 // and so are a few in the others
		live := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := live()
		x := many(shape, n)
		tree := newTree(Limits{}.withDefaults())
		if err := tree.apply(x, 1); err != nil {
			t.Fatal(err)
		}
		tree.prune()
		merged := live()
		runtime.KeepAlive(x)
		var writing uint64
		out := &atFirstWrite{Writer: io.Discard, once: func() { writing = live() }}
		if err := erofs.Write(out, tree.Tree, erofs.Options{Devices: []erofs.Device{{Tag: "x", Size: 1 << 40}}}); err != nil {
			t.Fatal(err)
		}
		a, b := int(merged-before)/entries, int(writing-before)/entries
		t.Logf("%s: %d bytes for each of %d entries while merging, %d while writing", shape, a, entries, b)
		limit := 300
		if shape == "long names" {
			limit += 2 * 24 << 20 / entries // which belong to what the process has anyway
		}
		if max(a, b) > limit {
			t.Errorf("%s: more than %d bytes for an entry", shape, limit)
		}
	}
}

// BenchmarkMerge reads an index, merges it and writes the metadata, as for an image of one layer.
func BenchmarkMerge(b *testing.B) {
	for _, shape := range []string{"packages", "one directory", "directories"} {
		b.Run(shape, func(b *testing.B) {
			x := many(shape, 300_000)
			encoded := x.encode()
			inodes, before := 0, cpuTime(b)
			for b.Loop() {
				decoded, err := decodeIndex(encoded)
				if err != nil {
					b.Fatal(err)
				}
				tree := newTree(Limits{}.withDefaults())
				if err := tree.apply(decoded, 1); err != nil {
					b.Fatal(err)
				}
				tree.prune()
				if err := erofs.Write(io.Discard, tree.Tree, erofs.Options{Devices: []erofs.Device{{Tag: "x", Size: x.size}}}); err != nil {
					b.Fatal(err)
				}
				inodes = tree.inodes
			}
			b.ReportMetric(float64(inodes)*float64(b.N)/(cpuTime(b)-before).Seconds(), "inodes/cpu-s")
		})
	}
}

// cpuTime is what this process has used of the processors: other work on the machine doesn't count.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
