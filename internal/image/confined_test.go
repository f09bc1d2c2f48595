package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/pinnacehq/pinnace/internal/image/imagetest"
	"github.com/pinnacehq/pinnace/internal/sandbox"
)

func TestMain(m *testing.M) {
	if !sandbox.Possible() {
		os.Exit(m.Run())
	}
	sandbox.Main(map[string]sandbox.Part{ConfinedPart: func(conn *net.UnixConn) error {
		onEntry = failAt
		return Confined(conn)
	}})
	os.Exit(m.Run())
}

// failAt makes a confined process fail where a layer asks for it.
func failAt(name string) {
	switch name {
	case "fail/panic":
		panic("a fault of ours")
	case "fail/exit":
		os.Exit(7)
	case "fail/hang":
		select {}
	case "fail/overflow":
		overflow(0)
	case "fail/memory":
		var all [][]byte
		for range 100_000 {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		panic(len(all))
	}
}

func overflow(n int) int {
	var deep [1 << 12]int
	deep[n%len(deep)] = n
	if n < 0 {
		return n // never
	}
	return overflow(n+1) + deep[n/2%len(deep)]
}

func needConfined(t *testing.T) {
	t.Helper()
	if !sandbox.Available() {
		t.Skip("needs a binary without cgo: build with CGO_ENABLED=0")
	}
}

func openStore(t *testing.T, opts Options) *Store {
	t.Helper()
	s, err := OpenWith(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A process that fails is one error, which says what it did when. The image is not refused, nothing is left,
// and the next pull works.
func TestConfinedProcessFails(t *testing.T) {
	needConfined(t)
	for name, want := range map[string]string{
		"fail/panic":    "fault in the program at github.com/pinnacehq/pinnace/internal/image.failAt:",
		"fail/exit":     "exit status 7",
		"fail/hang":     "did nothing for 300ms",
		"fail/overflow": "memory",
		"fail/memory":   "memory",
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{Limits: Limits{Entries: 100_000}})
			if name == "fail/hang" {
				s.patience = 300 * time.Millisecond
			}
			src := imagetest.New().Layer(imagetest.File("good", "1")).Layer(imagetest.File("before", "2"), imagetest.File(name, "3"), imagetest.File("after", "4")).Build()
			_, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
			if !errors.Is(err, errConfined) || errors.Is(err, ErrRefused) || errors.Is(err, ErrCorrupt) {
				t.Fatalf("got %v", err)
			}
			for _, part := range []string{want, fmt.Sprintf("layer %s at or after the entry %q", src.BlobDigests[1], name)} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want %q in it", err, part)
				}
			}
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %v", err)
			}
			if left, err := filepath.Glob(filepath.Join(s.temp, "*")); len(left) != 1 || err != nil {
				t.Errorf("left behind: %v, %v", left, err)
			}
			noChildren(t)
			good := imagetest.New().Layer(imagetest.File("good", "1")).Layer(imagetest.File("other", "2")).Build()
			if _, err := s.Pull(t.Context(), good, good.ManifestDigest, good.Manifest, good.Config, nil); err != nil {
				t.Errorf("the next pull: %v", err)
			}
		})
	}
}

// children are the confined processes of this one.
func children(t *testing.T) (list []string) {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone meanwhile
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if fields[1] == fmt.Sprint(os.Getpid()) {
			cmdline, _ := os.ReadFile(filepath.Dir(path) + "/cmdline")
			list = append(list, string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return list
}

func noChildren(t *testing.T) {
	t.Helper()
	if list := children(t); len(list) > 0 {
		t.Errorf("processes are left: %v", list)
	}
}

// A blockedSource gives blobs when it is told to.
type blockedSource struct {
	Source
	asked chan struct{}
	go_   chan struct{}
}

func (b *blockedSource) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	b.asked <- struct{}{}
	select {
	case <-b.go_:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return b.Source.Blob(ctx, digest, size)
}

// There is one process for a pull, with what it may do taken away, and none afterwards.
func TestPullIsConfined(t *testing.T) {
	needConfined(t)
	s := openStore(t, Options{})
	img := imagetest.New().Layer(imagetest.File("a", "1")).Layer(imagetest.File("b", "2")).Build()
	src := &blockedSource{Source: img, asked: make(chan struct{}), go_: make(chan struct{})}
	done := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), src, img.ManifestDigest, img.Manifest, img.Config, nil)
		done <- err
	}()
	<-src.asked
	<-src.asked
	for deadline := time.Now().Add(20 * time.Second); len(children(t)) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if list := children(t); len(list) != 1 || !strings.HasPrefix(list[0], "pinnace-sandbox image ") {
		t.Errorf("processes: %q", list)
	}
	close(src.go_)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	noChildren(t)
}

// A caller who leaves takes the process along, unless somebody else waits for the same layer.
func TestCancelledPullLeavesNoProcess(t *testing.T) {
	needConfined(t)
	s := openStore(t, Options{})
	img := imagetest.New().Layer(imagetest.File("a", "1")).Build()
	src := &blockedSource{Source: img, asked: make(chan struct{}, 2), go_: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	first, second := make(chan error), make(chan error)
	pull := func(ctx context.Context, done chan error) {
		_, err := s.Pull(ctx, src, img.ManifestDigest, img.Manifest, img.Config, nil)
		done <- err
	}
	go pull(ctx, first)
	<-src.asked
	go pull(t.Context(), second)
	for s.flights.waiting(img.DiffIDs[0]) < 2 {
		time.Sleep(time.Millisecond)
	}
	cancel(enough)
	if err := <-first; !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
	close(src.go_)
	if err := <-second; err != nil {
		t.Errorf("the one who stayed: %v", err)
	}
	noChildren(t)
}

// A layer that is refused while most of its blob is still to come costs the others nothing: the process says so at once,
// and goes on.
func TestRefusedEarly(t *testing.T) {
	needConfined(t)
	s := openStore(t, Options{})
	s.patience = 2 * time.Second
	w := s.newWorker()
	pull := func(img *imagetest.Image) error {
		spec, err := parseSpec(img.ManifestDigest, img.Manifest, img.Config, s.limits)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.complete(t.Context(), img, w, spec, func(Progress) {})
		return err
	}
	rest := make([]byte, 4*ringSlots*ringSlotSize)
	blob := append(imagetest.Block512(tar.TypeReg, "../a", int64(len(rest))), rest...)
	if err := pull(blobImage(blob, imagetest.Digest(blob))); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "has .. in its name") {
		t.Errorf("got %v, want a refusal of the name", err)
	}
	if err := pull(imagetest.New().Layer(imagetest.File("a", "1")).Build()); err != nil {
		t.Errorf("the same process, afterwards: %v", err)
	}
	if err := w.release(); err != nil {
		t.Error(err)
	}
}

// The bound of docs/design/layers.md, whatever a layer holds: what the process ever had in memory, with what it
// has of this binary.
func TestMemoryOfHostileLayers(t *testing.T) {
	needConfined(t)
	entries, size := 50_000, int64(256<<20)
	if os.Getenv("PINNACE_E2E") == "1" {
		entries, size = 900_000, 10<<30
	}
	limits := Limits{Entries: entries, LayerBytes: max(128<<20, int64(entries)*1024+1<<20), NameBytes: max(4<<20, int64(entries)*40)}
	for name, hostile := range map[string]struct {
		blob    func(t *testing.T) (blob []byte, diffID string)
		entries int
		window  int64
		want    string
	}{
		"gzip bomb": {blob: func(t *testing.T) ([]byte, string) { return bomb(t, size, gzipWriter) }, want: "bytes uncompressed"},
		"zstd bomb": {blob: func(t *testing.T) ([]byte, string) { return bomb(t, size, zstdWriter) }, window: maxZstdWindow, want: "bytes uncompressed"},
		"60 GB in a header": {
			blob: func(*testing.T) ([]byte, string) {
				return append(imagetest.Block512(tar.TypeReg, "a", 60<<30), make([]byte, 5<<10)...), imagetest.Digest(nil)
			}, want: "declares 64424509440 bytes",
		},
		"long PAX records": {blob: func(t *testing.T) ([]byte, string) { return packed(t, int(limits.NameBytes/65_000)+2, longRecord) }, want: "attributes exceed"},
		"many entries":     {blob: func(t *testing.T) ([]byte, string) { return packed(t, entries-503, plain) }, entries: entries},
		"more entries":     {blob: func(t *testing.T) ([]byte, string) { return packed(t, entries+1, plain) }, entries: entries, want: "more than"},
		"deep directories": {blob: func(t *testing.T) ([]byte, string) { return packed(t, entries/200-1, deep) }, entries: entries},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{Limits: limits})
			img := blobImage(hostile.blob(t))
			spec, err := parseSpec(img.ManifestDigest, img.Manifest, img.Config, s.limits)
			if err != nil {
				t.Fatal(err)
			}
			w := s.newWorker()
			_, err = s.complete(t.Context(), img, w, spec, func(Progress) {})
			<-w.started
			peak := w.process.Peak()
			if err := w.release(); err != nil {
				t.Error(err)
			}
			if hostile.want == "" && err != nil || hostile.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), hostile.want)) {
				t.Errorf("got %v, want %q", err, hostile.want)
			}
			bound := int64(baseBytes+layerBytes) + int64(hostile.entries)*entryBytes + hostile.window
			t.Logf("peak %d KiB of %d", peak>>10, bound>>10)
			if peak > bound || peak == 0 {
				t.Errorf("took %d KiB, at most %d", peak>>10, bound>>10)
			}
			if left, err := filepath.Glob(filepath.Join(s.temp, "*")); len(left) != 1 || err != nil {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// blobImage is an image of one layer, whatever its blob is.
func blobImage(blob []byte, diffID string) *imagetest.Image {
	return imagetest.New().Compress(imagetest.None).RawLayer(blob).Document(func(c map[string]any) {
		c["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{diffID}}
	}).Build()
}

func gzipWriter(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }

func zstdWriter(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithWindowSize(maxZstdWindow), zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
}

// bomb is a tar of one file full of zeros.
func bomb(t *testing.T, size int64, compress func(io.Writer) (io.WriteCloser, error)) ([]byte, string) {
	t.Helper()
	var blob bytes.Buffer
	c, err := compress(&blob)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(c)
	// Smaller than it says, as far as the limit is concerned: what counts is what comes.
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range size >> 20 {
		if _, err := c.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return blob.Bytes(), imagetest.Digest(nil)
}

func plain(i int) *tar.Header {
	return &tar.Header{Name: fmt.Sprintf("usr/lib/%d/%d", i%500, i), Typeflag: tar.TypeReg, Mode: 0o644}
}

func longRecord(i int) *tar.Header {
	return &tar.Header{
		Name: fmt.Sprint(i), Typeflag: tar.TypeReg, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 65_000), "comment": strings.Repeat("y", 900_000)},
	}
}

func deep(i int) *tar.Header {
	return &tar.Header{Name: fmt.Sprint(i) + strings.Repeat("/d", 198) + "/f", Typeflag: tar.TypeReg}
}

// packed is a layer of n entries, and its diffID.
func packed(t *testing.T, n int, header func(i int) *tar.Header) ([]byte, string) {
	t.Helper()
	var blob bytes.Buffer
	c, err := gzip.NewWriterLevel(&blob, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(c, sum))
	for i := range n {
		if err := w.WriteHeader(header(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	return blob.Bytes(), fmt.Sprintf("sha256:%x", sum.Sum(nil))
}

// waiting is how many wait for the work under key.
func (f *flights) waiting(key string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	current := f.active[key]
	if current == nil {
		return 0
	}
	current.mu.Lock()
	defer current.mu.Unlock()
	return len(current.listeners)
}
