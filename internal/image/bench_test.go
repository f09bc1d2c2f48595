package image_test

import (
	"fmt"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// many30k is 30,000 files in 1,000 directories, and a small layer over them.
func many30k(top string) *imagetest.Image {
	var entries []imagetest.Entry
	for i := range 1000 {
		entries = append(entries, imagetest.Dir(fmt.Sprintf("usr/lib/package-%d", i)))
		for j := range 30 {
			entries = append(entries, imagetest.File(fmt.Sprintf("usr/lib/package-%d/module-%d.js", i, j), "x"))
		}
	}
	return imagetest.New().Layer(entries...).Layer(imagetest.File("app", top)).Build()
}

func BenchmarkLookup(b *testing.B) {
	s, err := image.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	src := many30k("")
	if _, err := s.Pull(b.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, ok, err := s.Lookup(src.ManifestDigest); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// Only the top layer is new.
func BenchmarkPullTopLayer(b *testing.B) {
	s, err := image.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		src := many30k(fmt.Sprint(n))
		if n == 1 {
			if _, err := s.Pull(b.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
				b.Fatal(err)
			}
			src = many30k("first")
		}
		b.StartTimer()
		if _, err := s.Pull(b.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// Nothing is new: what a pull of a cached image costs.
func BenchmarkPullCached(b *testing.B) {
	s, err := image.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	src := many30k("")
	for b.Loop() {
		if _, err := s.Pull(b.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// A collection of a store with 100 images of 12 layers, 8 of which all have in common, and a lease for each.
func BenchmarkCollect(b *testing.B) {
	s, err := image.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	for i := range 100 {
		builder := imagetest.New().Compress(imagetest.None)
		for l := range 12 {
			content := fmt.Sprint(l)
			if l >= 8 {
				content = fmt.Sprint(i, l)
			}
			builder.Layer(imagetest.File("f", content))
		}
		src := builder.Build()
		spec := image.LeaseSpec{Owner: "agent", Kind: "instance", Name: fmt.Sprint(i)}
		if _, err := s.Lease(b.Context(), spec, src.ManifestDigest, src.Manifest, src.Config); err != nil {
			b.Fatal(err)
		}
		img, err := s.Pull(b.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Disks(img, image.LayerDrives); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		report, err := s.GC(b.Context(), image.GCOptions{})
		if err != nil || len(report.Removed) > 0 {
			b.Fatal(report, err)
		}
	}
}
