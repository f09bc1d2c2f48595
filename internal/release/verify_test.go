package release_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// documents are those of a good Release with an index over two architectures.
func documents(t *testing.T) release.Documents {
	t.Helper()
	m := parse(t, smallest)
	d := release.Documents{Image: digestOf([]byte("index")), App: "api", Source: []byte(smallest), Canonical: m.Canonical(), Manifest: string(m.Hash())}
	d.ID = string(release.New(release.ImageDigest(d.Image), m).ID())
	for _, arch := range []string{"amd64", "arm64"} {
		config := fmt.Appendf(nil, `{"os":"linux","architecture":%q}`, arch)
		image := fmt.Appendf(nil, `{"config":{"digest":%q,"size":%d}}`, digestOf(config), len(config))
		d.Platforms = append(d.Platforms, release.Platform{Architecture: arch, ManifestDigest: digestOf(image), Manifest: image, Config: config})
	}
	return d
}

func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*release.Documents)
		want   string // what is found to be wrong
	}{
		{"good", func(*release.Documents) {}, ""},
		{"no source", func(d *release.Documents) { d.Source = nil }, ""},
		{"id of another", func(d *release.Documents) { d.ID = digestOf(nil) }, "release id"},
		{"image changed", func(d *release.Documents) { d.Image = digestOf(nil) }, "release id"},
		{"image not pinned", func(d *release.Documents) { d.Image = "latest" }, "release id"},
		{"canonical bytes changed", func(d *release.Documents) {
			d.Canonical = []byte(strings.Replace(string(d.Canonical), "268435456", "536870912", 1))
		}, "manifest hash, source text"},
		{"canonical bytes in other words", func(d *release.Documents) {
			d.Canonical = append(d.Canonical, '\n')
			d.Manifest = string(manifest.HashOf(d.Canonical))
		}, "release id, canonical manifest, source text"},
		{"another app", func(d *release.Documents) { d.App = "shop" }, "canonical manifest"},
		{"source changed", func(d *release.Documents) { d.Source = []byte(smallest + "restart = \"never\"\n") }, "source text"},
		{"source broken", func(d *release.Documents) { d.Source = []byte("x") }, "source text"},
		{"image manifest changed", func(d *release.Documents) { d.Platforms[0].Manifest = []byte("{}") }, "image manifest amd64"},
		{"config changed", func(d *release.Documents) { d.Platforms[1].Config = []byte(`{}`) }, "image config arm64"},
		{"architectures swapped", func(d *release.Documents) {
			d.Platforms[0].Architecture, d.Platforms[1].Architecture = "arm64", "amd64"
		}, "image config arm64, image config amd64"},
		{"nothing of the image", func(d *release.Documents) { d.Platforms = nil }, "image"},
		{"one architecture as the whole", func(d *release.Documents) {
			d.Image = d.Platforms[0].ManifestDigest
			d.ID = string(release.Release{App: "api", Image: release.ImageDigest(d.Image), Manifest: manifest.Hash(d.Manifest)}.ID())
		}, "image manifest amd64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := documents(t)
			tt.change(&d)
			var wrong []string
			for _, f := range d.Verify() {
				if f.Detail == "" {
					t.Errorf("%s says nothing", f.What)
				}
				if !f.OK {
					wrong = append(wrong, f.What)
				}
			}
			if got := strings.Join(wrong, ", "); got != tt.want {
				t.Errorf("wrong are %q, want %q\n%+v", got, tt.want, d.Verify())
			}
		})
	}
}
