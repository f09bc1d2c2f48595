package vmtest_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// What a guest sees of an image, through its overlay, is what this machine's kernel sees of the same file system
// without one: every property of every name, and the contents. The corpus' tests compare the latter with umoci.
// The images are the corpus of odd layers, and one of Debian's packages; PINNACE_LAYOUT names a directory with an
// OCI image layout to take instead of the second.
func TestGuestSeesTheTree(t *testing.T) {
	source := vmtest.NeedGuests(t)
	erofstest.Require(t)
	k := vmtest.Prepare(t, source, vmtest.Build(t, "github.com/pinnacehq/pinnace/cmd/pinnace-init"))
	program, err := os.ReadFile(vmtest.Build(t, "./testdata/list"))
	if err != nil {
		t.Fatal(err)
	}
	driver, err := qemu.New(qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		make func(*testing.T) (*imagetest.Image, error)
		args []string
	}{
		{"corpus", func(*testing.T) (*imagetest.Image, error) { return imagetest.Together().Build(), nil }, nil},
		{"image", debian, []string{"sum"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base, err := tt.make(t)
			if err != nil {
				t.Fatal(err)
			}
			built, err := base.With(imagetest.Dir("etc"), imagetest.Dir("pinnace-test"), imagetest.File("pinnace-test/list", string(program)).Mode(0o755))
			if err != nil {
				t.Fatal(err)
			}
			img, set := stored(t, built)
			spec, config := imageSpec(t, set, img.UUID)
			spec.Kernel, spec.Initramfs, spec.MemoryMiB = k.Path, k.Initramfs, 512
			config.Process.Entrypoint = append([]string{"/pinnace-test/list"}, tt.args...)
			got, exit := runImage(t, driver, spec, config)
			if exit.Code != 42 {
				t.Fatalf("exit: got %+v, want code 42; output:\n%.2000s", exit, strings.Join(got, "\n"))
			}
			nodes := onHost(t, img)
			want := imagetest.Lines(nodes)
			t.Logf("%d names in %d layers", len(want), len(img.Layers))
			if slices.Equal(tt.args, []string{"sum"}) {
				want = []string{imagetest.Digest([]byte(strings.Join(want, "\n")))}
			}
			compareLines(t, got, want)
		})
	}
}

func debian(t *testing.T) (*imagetest.Image, error) {
	if dir := os.Getenv("PINNACE_LAYOUT"); dir != "" {
		return imagetest.OpenLayout(dir, os.Getenv("PINNACE_LAYOUT_TAG"))
	}
	b, err := imagetest.Debian(t.TempDir(), imagetest.DebianPackages()...)
	if err != nil {
		t.Skip("needs Debian's packages: ", err)
	}
	return b.Build(), nil
}

func stored(t *testing.T, built *imagetest.Image) (*image.Image, image.DiskSet) {
	t.Helper()
	store, err := image.Open(vmtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	img, err := store.Pull(t.Context(), built, built.ManifestDigest, built.Manifest, built.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := store.Disks(img, image.LayerDrives)
	if err != nil {
		t.Fatal(err)
	}
	return img, set
}

// onHost lists the image as this machine's kernel shows it, as far as the guest can.
func onHost(t *testing.T, img *image.Image) []imagetest.Node {
	t.Helper()
	meta := erofstest.Loop(t, img.Metadata)
	var layers []string
	for _, l := range img.Layers {
		layers = append(layers, erofstest.Loop(t, l.Path))
	}
	var nodes []imagetest.Node
	erofstest.Namespace(t, func() {
		mounted := erofstest.Mount(t, meta, layers)
		defer erofstest.Unmount(t, mounted)
		var err error
		if nodes, err = imagetest.ListGuest(mounted); err != nil {
			t.Error(err)
		}
	})
	return nodes
}

func compareLines(t *testing.T, got, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("the guest alone has %.500s", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("the host alone has %.500s", line)
		}
	}
}
