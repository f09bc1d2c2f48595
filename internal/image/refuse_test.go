package image_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// What is refused before it is known to be an entry, or for its amount. The other rules are in the corpus.
// small is enough for every honest layer of these tests.
func small() image.Limits {
	return image.Limits{LayerBytes: 2 << 20, ImageBytes: 3 << 20, BlobBytes: 4 << 20, Entries: 1000, NameBytes: 64 << 10}
}

func TestRefusedLayers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		build *Builder
		want  string // in the message, which also names the layer
	}{
		{"R12 no tar", New().RawLayer(bytes.Repeat([]byte("no tar"), 1000)), "not a tar"},
		{"R12 cut tar", New().RawLayer(Tar(File("a", strings.Repeat("a", 5000)))[:2000]), "not a tar"},
		{"R12 cut padding", New().RawLayer(Tar(File("a", "abc"))[:515]), "padding"},
		{"R12 cut padding after a size with a NUL in it", New().RawLayer(append(oddSize(), "32 bytes, as octal 40 would say."...)), "padding"},
		{"R12 short", New().RawLayer([]byte{0}), "not a tar"},
		{"R12 nothing in gzip", New().RawLayer(nil), "has 0 bytes uncompressed"},
		{"R12 nothing", New().Compress(None).RawLayer(nil), "empty"},
		{"C1 declared size", New().RawLayer(patch(Tar(File("a", "")), func(h []byte) { copy(h[124:], "00777777777") })), "declares 134217727 bytes, and a layer may have 2097152"},
		{"C1 sparse file", New().Layer(Sparse("1.0", "f", 60<<30, At(0, strings.Repeat("x", 512)))), "declares 64424509440 bytes, and a layer may have 2097152"},
		{"C1 sparse files together", New().Layer(Sparse("1.0", "f", 1<<20), Sparse("0.1", "g", 1<<20, At(0, "")), Sparse("0.0", "h", 512, At(0, ""))), "declares 2097664 bytes of sparse files"},
		{"C1 bomb of gzip", New().RawLayer(make([]byte, 64<<20)), "more than 2097152 bytes uncompressed"},
		{"C1 bomb of zstd", New().Compress(Zstd).RawLayer(append(Tar(File("a", "")), make([]byte, 64<<20)...)), "more than 2097152 bytes uncompressed"},
		{"C1 sum of the layers", New().Layer(File("a", strings.Repeat("a", 1800<<10))).Layer(File("b", strings.Repeat("b", 1800<<10))), "layers 1 to 2 have more than 3145728 bytes"},
		{"C2 entries", New().Layer(many(1001)...), "more than 1000 entries"},
		{"C2 entries of all layers", New().Layer(many(600)...).Layer(many(600)...), "the 1000 files and directories"},
		{"C2 implicit directories", New().Layer(implicit()...), "the 1000 files and directories"},
		{"C3 names", New().Layer(longNames("a", 60)...), "names and attributes exceed 65536 bytes"},
		{"C3 names of all layers", New().Layer(longNames("a", 20)...).Layer(longNames("b", 20)...), "exceed 65536 bytes"},
		{"Z1 xz", New().Compress(None).RawLayer([]byte("\xfd7zXZ\x00 and more")), "compressed with xz"},
		{"Z1 bzip2", New().Compress(None).RawLayer([]byte("BZh9 and more")), "compressed with bzip2"},
		{"Z3 gzip with bytes behind it", New().Compress(None).RawLayer(gzipOf(Tar(File("a", "")), "behind")), "what follows the last member is not another one"},
		{"Z3 gzip with zeros behind it", New().Compress(None).RawLayer(gzipOf(Tar(File("a", "")), "\x00")), "what follows the last member is not another one"},
		{"Z3 gzip cut short", New().Compress(None).RawLayer(gzipOf(Tar(File("a", "")), "")[:60]), "gzip: byte 60: unexpected EOF"},
		{"Z3 gzip that is nothing more", New().Compress(None).RawLayer([]byte{0x1f, 0x8b, 9}), "unknown compression method"},
		{"Z2 zstd window", New().Compress(None).RawLayer(wideZstd()), "window"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := tt.build.Build()
			dir := t.TempDir()
			s, err := image.OpenWith(dir, image.Options{Limits: small()})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
			if !errors.Is(err, image.ErrRefused) && !strings.Contains(fmt.Sprint(err), "window") {
				t.Errorf("got %v, want ErrRefused", err)
			}
			if !strings.Contains(fmt.Sprint(err), tt.want) || !strings.Contains(fmt.Sprint(err), "layer") {
				t.Errorf("got %v\nwant %q in it", err, tt.want)
			}
			if len(fmt.Sprint(err)) > 1000 {
				t.Errorf("message of %d bytes", len(err.Error()))
			}
			if _, ok, err := s.Lookup(src.ManifestDigest); ok || err != nil {
				t.Errorf("lookup of a refused image: %v, %v", ok, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			wrong(t, dir)
		})
	}
}

func TestAcceptedStreams(t *testing.T) {
	archive := Tar(File("a", "1"))
	gz := func(b []byte) []byte { return gzipOf(b, "") }
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}, zstdOf(archive)...)
	for _, tt := range []struct {
		name  string
		tar   []byte
		blob  []byte
		media string
	}{
		{"S1 several gzip members", archive, append(gz(archive[:600]), gz(archive[600:])...), ""},
		{"S2 zstd begins with a skippable frame", archive, skippable, ""},
		{"S3 garbage after the end of the archive", append(slices.Clone(archive), "garbage"...), nil, ""},
		{"S4 bytes decide, not the media type", archive, gz(archive), "application/vnd.oci.image.layer.v1.tar"},
		{"S5 foreign layer that the registry has", archive, archive, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
		{"S6 empty layer", Tar(), nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.blob == nil {
				tt.blob = gz(tt.tar)
			}
			if tt.media == "" {
				tt.media = "application/vnd.oci.image.layer.v1.tar+gzip"
			}
			src := New().RawLayer(tt.tar).Manifest(func(m map[string]any) {
				d := Descriptor(tt.media, tt.blob)
				d["urls"] = []string{"http://192.0.2.1/never"}
				m["layers"] = []any{d}
			}).Build()
			src.Blobs[Digest(tt.blob)] = tt.blob
			img := pull(t, open(t, t.TempDir()), src)
			if got := listing(t, img); got != "a=1" && len(tt.tar) > 1024 {
				t.Errorf("tree is %s", got)
			}
		})
	}
}

func TestCorruptBlobs(t *testing.T) {
	for _, compression := range []Compression{Gzip, Zstd, None} {
		content := make([]byte, 300_000)
		for i := range content {
			content[i] = byte(i * i >> 3)
		}
		src := New().Compress(compression).Layer(File("a", string(content))).Build()
		digest := src.BlobDigests[0]
		good := src.Blobs[digest]
		for name, bad := range map[string][]byte{
			"first byte":   flip(good, 0),
			"header":       flip(good, 5),
			"middle":       flip(good, len(good)/2),
			"last byte":    flip(good, len(good)-1),
			"cut":          good[:len(good)-1],
			"cut to half":  good[:len(good)/2],
			"nothing":      {},
			"padded":       append(slices.Clone(good), 0),
			"much longer":  append(slices.Clone(good), make([]byte, 1<<20)...),
			"another blob": Tar(File("b", "b")),
		} {
			t.Run(fmt.Sprintf("%s %s", compression, name), func(t *testing.T) {
				src := &Image{
					ManifestDigest: src.ManifestDigest, Manifest: src.Manifest, Config: src.Config,
					Open: func(context.Context, string, int64) (io.ReadCloser, error) {
						return io.NopCloser(bytes.NewReader(bad)), nil
					},
				}
				dir := t.TempDir()
				s := open(t, dir)
				_, err := s.Pull(t.Context(), counted{src}, src.ManifestDigest, src.Manifest, src.Config, nil)
				if !errors.Is(err, image.ErrCorrupt) {
					t.Errorf("got %v, want ErrCorrupt", err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				wrong(t, dir)
			})
		}
	}
}

// counted is a source out of an Image that Build didn't make.
type counted struct{ *Image }

func (c counted) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	return c.Open(ctx, digest, size)
}

func TestSourceErrorsStayTheirs(t *testing.T) {
	broken := errors.New("connection reset")
	src := New().Layer(File("a", strings.Repeat("abc", 100_000))).Build()
	for name, open := range map[string]func(string) (io.ReadCloser, error){
		"at once": func(string) (io.ReadCloser, error) { return nil, broken },
		"first read": func(string) (io.ReadCloser, error) {
			return io.NopCloser(errReader{broken}), nil
		},
		"on the way": func(digest string) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(src.Blobs[digest][:100]), errReader{broken})), nil
		},
		"unexpected end": func(digest string) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(src.Blobs[digest][:100]), errReader{fmt.Errorf("%w: %w", broken, io.ErrUnexpectedEOF)})), nil
		},
	} {
		src.Open = func(_ context.Context, digest string, _ int64) (io.ReadCloser, error) { return open(digest) }
		s, err := image.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
		if !errors.Is(err, broken) || errors.Is(err, image.ErrCorrupt) || errors.Is(err, image.ErrRefused) {
			t.Errorf("%s: got %v, want the source's error", name, err)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// wrong fails the test when a final name in the store has content that it must not have.
func wrong(t *testing.T, dir string) {
	t.Helper()
	tars, err := filepath.Glob(filepath.Join(dir, "layers", "*.tar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tars {
		want := "sha256:" + strings.TrimSuffix(filepath.Base(path), ".tar")
		if got := Digest(read(t, path)); got != want {
			t.Errorf("%s is %s", path, got)
		}
		if _, err := os.Stat(strings.TrimSuffix(path, ".tar") + ".idx"); err != nil {
			t.Errorf("a layer without its index: %v", err)
		}
	}
	if left := unfinished(t, dir); len(left) > 0 {
		t.Errorf("left unfinished: %v", left)
	}
}

func flip(b []byte, i int) []byte {
	b = slices.Clone(b)
	b[i] ^= 0x80
	return b
}

// oddSize is a header whose size ends before its field does.
func oddSize() []byte {
	b := Block512('0', "a", 0)
	copy(b[124:], "000000040\x0001\x00")
	return Checksum(b)
}

// patch edits the first header of a tar and makes its checksum right again.
func patch(b []byte, edit func(header []byte)) []byte {
	h := b[:512]
	edit(h)
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func many(n int) []Entry {
	var list []Entry
	for i := range n {
		list = append(list, File(fmt.Sprintf("f%d", i), ""))
	}
	return list
}

func implicit() []Entry {
	var list []Entry
	for i := range 10 {
		list = append(list, File(strings.Repeat(fmt.Sprintf("%d/", i), 150)+"f", ""))
	}
	return list
}

func longNames(prefix string, n int) []Entry {
	var list []Entry
	for i := range n {
		list = append(list, File(fmt.Sprintf("%s%d/%s", prefix, i, strings.Repeat(strings.Repeat("n", 200)+"/", 10)+"f"), ""))
	}
	return list
}

func gzipOf(b []byte, behind string) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return append(out.Bytes(), behind...)
}

func zstdOf(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(b, nil)
}

// wideZstd begins a frame that asks for a window of 64 MiB.
func wideZstd() []byte {
	return []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 16 << 3, 0x01, 0x00, 0x00}
}
