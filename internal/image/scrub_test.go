package image_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
)

func TestScrub(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, b := two()
	pull(t, s, a)
	pull(t, s, b)
	// One pass, and the next finds what has rotted since. What is found is pulled again at once.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var found []image.Damage
	passes := 0
	err := s.Scrub(ctx, image.ScrubOptions{
		Rate: 1 << 30, Period: time.Millisecond,
		Found: func(_ context.Context, d image.Damage) {
			found = append(found, d)
			for _, digest := range d.Images {
				if _, err := s.Pull(t.Context(), a, digest, nil, nil, nil); digest == a.ManifestDigest && err != nil {
					t.Error(err)
				}
			}
		},
		Ended: func(state image.ScrubState) {
			switch passes++; passes {
			case 1:
				if state.Files != 10 || state.Damaged != 0 || state.Bytes < 220_000 {
					t.Errorf("first pass: %+v", state)
				}
				rot(t, layerPath(dir, a.DiffIDs[1]), 10_000)
			case 2:
				if state.Damaged != 1 {
					t.Errorf("second pass: %+v", state)
				}
				cancel()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Kind != "layer" || found[0].Images[0] != a.ManifestDigest {
		t.Errorf("found %+v", found)
	}
	sound(t, s, "after the scrub")
	if n := a.Requests(a.BlobDigests[1]); n != 2 {
		t.Errorf("the rotten layer was fetched %d times, want 2", n)
	}
}

// An interrupted pass goes on where it was, in another process too; a state that makes no sense begins anew.
func TestScrubGoesOn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, b := two()
	pull(t, s, a)
	pull(t, s, b)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 600*time.Millisecond, errors.New("enough"))
	defer cancel()
	if err := s.Scrub(ctx, image.ScrubOptions{Rate: 100_000, Period: time.Hour}); err != nil {
		t.Fatal(err)
	}
	first := s.ScrubState()
	if first.After == "" || !first.Ended.IsZero() {
		t.Fatalf("interrupted at %+v", first)
	}
	left := 0
	for _, pattern := range []string{"images/*", "layers/*", "metadata/*"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, p := range paths {
			if rel, _ := filepath.Rel(dir, p); rel > first.After {
				left++
			}
		}
	}
	for _, damaged := range []bool{false, true} {
		if damaged {
			if err := os.Remove(filepath.Join(dir, "scrub.json")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "scrub.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			left = 10
		}
		before := s.ScrubState().Files
		ctx, cancel := context.WithCancel(t.Context())
		var state image.ScrubState
		err := open(t, dir).Scrub(ctx, image.ScrubOptions{Rate: 1 << 30, Period: time.Hour, Ended: func(st image.ScrubState) {
			state = st
			cancel()
		}})
		if err != nil || state.Files-before != left || state.Ended.IsZero() {
			t.Errorf("went on with %+v, %v, want %d files more than %d", state, err, left, before)
		}
	}
}
