package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// file is one entry of a test image's layer.
type file struct {
	name string
	mode int64
	data []byte
}

// layer makes a gzip layer of files.
func layer(t *testing.T, files ...file) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// workloadImage is an image with the test's program, whose pages say version.
func workloadImage(t *testing.T, version string, change func(*v1.Config)) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image,
		layer(t, file{"workload", 0o755, workload}),
		layer(t, file{"payload", 0o644, []byte("payload of version " + version)}))
	if err != nil {
		t.Fatal(err)
	}
	cfg := v1.Config{Entrypoint: []string{"/workload"}, Env: []string{"VERSION=" + version}}
	if change != nil {
		change(&cfg)
	}
	return withConfig(t, img, runtime.GOARCH, cfg)
}

func withConfig(t *testing.T, img v1.Image, arch string, cfg v1.Config) v1.Image {
	t.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = arch, "linux", cfg
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image into the lab's registry and returns its reference.
func (l *lab) push(repository, tag string, img v1.Image) string {
	l.t.Helper()
	text := l.registry + "/" + repository + ":" + tag
	ref, err := name.ParseReference(text, name.Insecure)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		l.t.Fatal(err)
	}
	return text
}

func digestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}
