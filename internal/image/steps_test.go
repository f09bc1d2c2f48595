package image_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/failpoint"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

const (
	stepsDir  = "PINNACE_IMAGE_STEPS_DIR"
	stepsKill = "PINNACE_IMAGE_STEPS_KILL"
)

// life is all that a store does that changes files: one image stays, the other is collected. sources serve them.
func life(s *image.Store, keep, drop *imagetest.Image) error {
	ctx := context.Background()
	for _, src := range []*imagetest.Image{keep, drop} {
		if _, err := s.Lease(ctx, image.LeaseSpec{Owner: "test", Kind: "step", Name: "x"}, src.ManifestDigest, src.Manifest, src.Config); err != nil {
			return err
		}
		img, err := s.Pull(ctx, src, src.ManifestDigest, src.Manifest, src.Config, nil)
		if err != nil {
			return err
		}
		if _, err := s.Disks(img, 1); err != nil {
			return err
		}
	}
	leases, err := s.Leases()
	if err != nil {
		return err
	}
	for _, l := range leases {
		if l.Image == drop.ManifestDigest {
			if err := s.Release(l.ID); err != nil {
				return err
			}
		}
	}
	_, err = s.GC(ctx, image.GCOptions{})
	return err
}

func stepImages() (keep, drop *imagetest.Image) {
	base := imagetest.File("base", strings.Repeat("base", 5000))
	return imagetest.New().Layer(base).Layer(imagetest.File("keep", "keep")).Build(),
		imagetest.New().Layer(base).Layer(imagetest.File("drop", "drop")).Layer(imagetest.File("more", "more")).Build()
}

// A process is killed just before every step that changes the disk; before a few of them unless it is a campaign.
// Whatever it left, no file is wrong, what is complete is not fetched again, and the store goes on.
func TestKilledAtEveryStep(t *testing.T) {
	keep, drop := stepImages()
	if dir := os.Getenv(stepsDir); dir != "" {
		n, err := strconv.Atoi(os.Getenv(stepsKill))
		if err != nil {
			t.Fatal(err)
		}
		failpoint.Set(func(string, string) error {
			if n--; n == 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // until the signal comes
			}
			return nil
		})
		s, err := image.OpenWith(dir, image.Options{Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := life(s, keep, drop); err != nil {
			t.Fatal(err)
		}
		return
	}
	states, stride, killed := map[string]bool{}, stepStride(9), 0
	for n := 1 + rand.IntN(stride); ; n += stride {
		dir := filepath.Join(t.TempDir(), "store")
		child := exec.Command(os.Args[0], "-test.run=^TestKilledAtEveryStep$")
		child.Env = append(os.Environ(), stepsDir+"="+dir, fmt.Sprintf("%s=%d", stepsKill, n))
		out, err := child.CombinedOutput()
		if err == nil {
			if n < 30 {
				t.Errorf("only %d steps: they are not all announced", n)
			}
			t.Logf("killed before %d of %d steps or so, which left %d different stores", killed, n-1, len(states))
			return
		}
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("step %d: the child ended with %v\n%s", n, err, out)
		}
		killed++
		states[stored(t, dir)] = true
		recovers(t, dir, keep, drop, fmt.Sprintf("killed before step %d", n))
		if t.Failed() {
			return
		}
	}
}

// Every step fails, or a few at random when it is no campaign, with the error of a disk that is broken or full. The error comes out, nothing unfinished
// stays, and the same store goes on without being opened again.
func TestFailedAtEveryStep(t *testing.T) {
	stride := stepStride(25)
	for _, cause := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for n := 1; ; n += 1 + rand.IntN(stride) {
			keep, drop := stepImages()
			dir := filepath.Join(t.TempDir(), "store")
			s, err := image.OpenWith(dir, image.Options{Workers: 1})
			if err != nil {
				t.Fatal(err)
			}
			count, failed := 0, ""
			restore := failpoint.Set(func(step, path string) error {
				// A disk that is full stays full; one that is broken gets well again, which the store must not rely on.
				if count++; count == n || count > n && cause == syscall.ENOSPC && (step == "create" || step == "sync") {
					failed = step + " " + filepath.Base(path)
					return cause
				}
				return nil
			})
			err = life(s, keep, drop)
			restore()
			if failed == "" {
				if err != nil || n < 30 {
					t.Errorf("%d steps, then %v", n, err)
				}
				break
			}
			if !errors.Is(err, cause) {
				// A full disk that a collection makes room on is no failure.
				if cause != syscall.ENOSPC || err != nil {
					t.Errorf("%s failed with %v: got %v", failed, cause, err)
				}
			}
			if left, err := filepath.Glob(filepath.Join(dir, "tmp", "process-*", "*[^k]")); err != nil || len(left) > 0 {
				t.Errorf("%s failed with %v: left %v", failed, cause, left)
			}
			if err := life(s, keep, drop); err != nil {
				t.Errorf("%s failed with %v: then %v", failed, cause, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			recovers(t, dir, keep, drop, fmt.Sprintf("%s failed with %v", failed, cause))
			if t.Failed() {
				return
			}
		}
	}
}

// stepStride is 1 in a campaign, so that no step is left out.
func stepStride(usual int) int {
	if os.Getenv(kills) != "" {
		return 1
	}
	return usual
}

// recovers checks a store that somebody left in whatever state.
func recovers(t *testing.T, dir string, keep, drop *imagetest.Image, when string) {
	t.Helper()
	s := open(t, dir)
	defer s.Close()
	sound(t, s, when)
	for _, src := range []*imagetest.Image{keep, drop} {
		before := map[string]int{}
		for i, diffID := range src.DiffIDs {
			before[src.BlobDigests[i]] = src.Requests(src.BlobDigests[i])
			if _, err := os.Stat(layerPath(dir, diffID)); err != nil {
				before[src.BlobDigests[i]]++
			}
		}
		img, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
		if err != nil {
			t.Fatalf("%s: pull: %v", when, err)
		}
		for blob, most := range before {
			if got := src.Requests(blob); got > most {
				t.Errorf("%s: %s was fetched although it was complete", when, blob)
			}
		}
		if _, err := s.Disks(img, 1); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	sound(t, s, when)
	// What nobody holds goes, also what the dead one held for its own time.
	for _, src := range []*imagetest.Image{keep, drop} {
		leases, err := s.Leases()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases {
			if l.Owner != "test" || l.Image != src.ManifestDigest && l.Image != keep.ManifestDigest && l.Image != drop.ManifestDigest {
				t.Errorf("%s: lease %+v is left", when, l)
			}
			if err := s.Release(l.ID); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := s.GC(t.Context(), image.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := stored(t, dir); left != "" {
		t.Errorf("%s: after a collection of everything there is %s", when, left)
	}
}

// sound verifies all files of a store.
func sound(t *testing.T, s *image.Store, when string) {
	t.Helper()
	report, err := s.Verify(t.Context(), image.VerifyOptions{})
	if err != nil {
		t.Fatalf("%s: verify: %v", when, err)
	}
	for _, d := range report.Damaged {
		t.Errorf("%s: %s %s %s", when, d.Kind, d.Name, d.Problem)
	}
}

// stored names the complete files of a store and its leases.
func stored(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	for _, kind := range []string{"layers", "metadata", "packs", "images", "leases", "quarantine"} {
		paths, err := filepath.Glob(filepath.Join(dir, kind, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			names = append(names, kind+"/"+filepath.Base(p))
		}
	}
	return strings.Join(names, " ")
}

func layerPath(dir, diffID string) string {
	return filepath.Join(dir, "layers", strings.TrimPrefix(diffID, "sha256:")+".tar")
}
