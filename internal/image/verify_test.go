package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// rot changes a bit of a file behind the store's back.
func rot(t *testing.T, path string, at int64) {
	t.Helper()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// Each kind of file is found, put aside, and made again by the next pull; layers alone are fetched for it.
func TestVerifyFindsRot(t *testing.T) {
	for _, tt := range []struct {
		kind    string
		pattern string
		also    []string // kinds of damage that come with it
		fetches int
	}{
		{"layer", "layers/*.tar", []string{"pack"}, 1},
		{"index", "layers/*.idx", nil, 0},
		{"metadata", "metadata/*.erofs", nil, 0},
		{"pack", "packs/*.img", nil, 0},
		{"record", "images/*.json", nil, 0},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			src := imagetest.New().Layer(imagetest.File("a", noise(1, 300_000))).Build()
			l := lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, src)
			img := pull(t, s, src)
			if _, err := s.Disks(img, 0); err != nil {
				t.Fatal(err)
			}
			sound(t, s, "fresh")
			paths, err := filepath.Glob(filepath.Join(dir, tt.pattern))
			if err != nil || len(paths) != 1 {
				t.Fatal(paths, err)
			}
			machine, err := os.Open(paths[0]) // as a machine has it
			if err != nil {
				t.Fatal(err)
			}
			defer machine.Close()
			info, _ := machine.Stat()
			rot(t, paths[0], info.Size()/2)
			if slices.Contains(tt.also, "pack") {
				packs, _ := filepath.Glob(filepath.Join(dir, "packs/*"))
				rot(t, packs[0], 200_000) // as on a file system where it shares the blocks
			}

			kept, err := s.Verify(t.Context(), image.VerifyOptions{Keep: true})
			if err != nil || len(kept.Damaged) != 1+len(tt.also) || kept.Damaged[0].Quarantined != "" {
				t.Fatalf("looking only: %+v, %v", kept, err)
			}
			if _, err := os.Stat(paths[0]); err != nil {
				t.Errorf("looking took it away: %v", err)
			}
			report, err := s.Verify(t.Context(), image.VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, d := range report.Damaged {
				kinds = append(kinds, d.Kind)
			}
			if want := append([]string{tt.kind}, tt.also...); !slices.Equal(kinds, want) {
				t.Fatalf("found %v, want %v: %+v", kinds, want, report.Damaged)
			}
			d := report.Damaged[0]
			// A record that cannot be read does not say of which image it is; the lease does.
			if len(d.Leases) != 1 && tt.kind != "record" || tt.kind != "record" && !slices.Equal(d.Images, []string{src.ManifestDigest}) {
				t.Errorf("concerns %v, %v", d.Images, d.Leases)
			}
			if _, err := os.Stat(filepath.Join(dir, d.Quarantined)); err != nil || d.Quarantined == "" {
				t.Errorf("not in quarantine: %v", err)
			}
			if _, err := machine.ReadAt(make([]byte, 1), 0); err != nil {
				t.Errorf("what runs from it: %v", err)
			}
			// Known damage is never booted.
			if tt.kind != "pack" {
				if _, ok, err := s.Lookup(src.ManifestDigest); ok || err != nil {
					t.Errorf("the image is still found: %v, %v", ok, err)
				}
			}
			before := src.Requests("")
			img = pull(t, s, src)
			if got := src.Requests("") - before; got != tt.fetches {
				t.Errorf("%d blobs fetched, want %d", got, tt.fetches)
			}
			if _, err := s.Disks(img, 0); err != nil {
				t.Fatal(err)
			}
			sound(t, s, "after another pull")
			// What was put aside goes with a collection.
			if err := s.Release(l.ID); err != nil {
				t.Fatal(err)
			}
			collect(t, s, image.GCOptions{})
			if left := stored(t, dir); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestVerifyOneImage(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, b := two()
	pull(t, s, a)
	pull(t, s, b)
	rot(t, layerPath(dir, b.DiffIDs[1]), 30_000)
	report, err := s.Verify(t.Context(), image.VerifyOptions{Images: []string{a.ManifestDigest}})
	if err != nil || len(report.Damaged) > 0 || report.Files != 6 {
		t.Errorf("verify a: %+v, %v", report, err)
	}
	report, err = s.Verify(t.Context(), image.VerifyOptions{Images: []string{b.ManifestDigest}})
	if err != nil || len(report.Damaged) != 1 || !strings.Contains(report.Damaged[0].Problem, "its sha256 is") {
		t.Errorf("verify b: %+v, %v", report, err)
	}
	// From now on the image is not complete, and a layer is missing rather than wrong.
	report, err = s.Verify(t.Context(), image.VerifyOptions{Images: []string{b.ManifestDigest}})
	if err != nil || len(report.Damaged) != 1 || report.Damaged[0].Kind != "missing" {
		t.Errorf("verify b again: %+v, %v", report, err)
	}
	if _, err := s.Verify(t.Context(), image.VerifyOptions{Images: []string{imagetest.Digest(nil)}}); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("verify what is not there: %v", err)
	}
}

// A layer that has lost its end.
func TestVerifyTruncated(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, _ := two()
	pull(t, s, a)
	path := layerPath(dir, a.DiffIDs[0])
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	report, err := s.Verify(t.Context(), image.VerifyOptions{})
	if err != nil || len(report.Damaged) != 1 || report.Damaged[0].Kind != "layer" {
		t.Errorf("verify: %+v, %v", report, err)
	}
	pull(t, s, a)
	sound(t, s, "after another pull")
}
