package image_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

const (
	sharedDir   = "PINNACE_IMAGE_SHARED_DIR"
	sharedSeed  = "PINNACE_IMAGE_SHARED_SEED"
	sharedTurns = "PINNACE_IMAGE_SHARED_TURNS"
)

// sharedImages have layers in common, so that what one collects is what another needs.
func sharedImages() []*imagetest.Image {
	var all []*imagetest.Image
	for i := range 5 {
		b := imagetest.New()
		for l := range 4 {
			n := l
			if l >= 2 {
				n = 10*i + l
			}
			b.Layer(imagetest.File(fmt.Sprintf("f%d", l), noise(uint64(n+1), 60_000)))
		}
		all = append(all, b.Build())
	}
	return all
}

// Four processes use one store at once, with every operation that there is. No pull fails, nothing that is held goes,
// and the store is sound at the end. In a campaign processes are killed all the while, too.
func TestSharedByProcesses(t *testing.T) {
	if dir := os.Getenv(sharedDir); dir != "" {
		seed, _ := strconv.ParseUint(os.Getenv(sharedSeed), 10, 64)
		turns, _ := strconv.Atoi(os.Getenv(sharedTurns))
		shareStore(t, dir, rand.New(rand.NewPCG(seed, 1)), turns)
		return
	}
	for _, quota := range []int64{0, 600_000} {
		t.Run(fmt.Sprintf("quota %d", quota), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			s := withQuota(t, dir, image.Quota{Bytes: quota})
			turns := killCount(t, 15)
			seed := uint64(time.Now().UnixNano())
			done := make(chan error)
			for i := range uint64(4) {
				go func() { done <- runShared(dir, seed+i, turns, i == 3 && os.Getenv(kills) != "") }()
			}
			for range 4 {
				if err := <-done; err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			}
			sound(t, s, fmt.Sprintf("seed %d, after all", seed))
			r := collect(t, s, image.GCOptions{})
			if left := stored(t, dir); left != "" {
				t.Errorf("seed %d: after a collection there is %s", seed, left)
			}
			t.Logf("%d turns of 4 processes; the last collection removed %d images and files, %d bytes", turns, len(r.Removed), r.Freed)
		})
	}
}

// runShared runs a process until it has had its turns. One that is mortal is killed again and again.
func runShared(dir string, seed uint64, turns int, mortal bool) error {
	random := rand.New(rand.NewPCG(seed, 2))
	for life := uint64(0); ; life++ {
		child := exec.Command(os.Args[0], "-test.run=^TestSharedByProcesses$")
		child.Env = append(os.Environ(), sharedDir+"="+dir, fmt.Sprintf("%s=%d", sharedSeed, seed+100*life), fmt.Sprintf("%s=%d", sharedTurns, turns))
		var out bytes.Buffer
		child.Stdout, child.Stderr = &out, &out
		if !mortal || life >= uint64(turns) {
			if err := child.Run(); err != nil {
				return fmt.Errorf("%w\n%s", err, out.String())
			}
			return nil
		}
		if err := child.Start(); err != nil {
			return err
		}
		timer := time.AfterFunc(time.Duration(random.Int64N(int64(500*time.Millisecond))), func() { _ = child.Process.Kill() })
		err := child.Wait()
		timer.Stop()
		if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || exit.ExitCode() >= 0) {
			return fmt.Errorf("%w\n%s", err, out.String())
		}
	}
}

// shareStore is one of the processes.
func shareStore(t *testing.T, dir string, random *rand.Rand, turns int) {
	s := open(t, dir)
	defer s.Close()
	all := sharedImages()
	for turn := range turns {
		src := all[random.IntN(len(all))]
		switch random.IntN(6) {
		case 0:
			collect(t, s, image.GCOptions{})
		case 1:
			collect(t, s, image.GCOptions{Need: 100_000})
		case 2:
			if _, _, err := s.Lookup(src.ManifestDigest); err != nil {
				t.Errorf("turn %d: lookup: %v", turn, err)
			}
			if _, err := s.Usage(); err != nil {
				t.Errorf("turn %d: usage: %v", turn, err)
			}
		default:
			useShared(t, s, src, turn)
		}
		if t.Failed() {
			return
		}
	}
}

// useShared does what an agent does: hold, look up, pull, attach; and checks that it has what it holds.
func useShared(t *testing.T, s *image.Store, src *imagetest.Image, turn int) {
	l := lease(t, s, image.LeaseSpec{Owner: "test", Kind: "use", Process: true}, src)
	img, ok, err := s.Lookup(src.ManifestDigest)
	if err == nil && !ok {
		img, err = s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
		// With a quota there may be no room, as long as the others hold what there is.
		if errors.Is(err, image.ErrNoSpace) {
			if err := s.Release(l.ID); err != nil {
				t.Error(err)
			}
			return
		}
	}
	if err != nil {
		t.Errorf("turn %d: pull: %v", turn, err)
		return
	}
	set, err := s.Disks(img, 2)
	if errors.Is(err, image.ErrNoSpace) {
		if err := s.Release(l.ID); err != nil {
			t.Error(err)
		}
		return
	}
	if err != nil {
		t.Errorf("turn %d: disks: %v", turn, err)
		return
	}
	for i, layer := range img.Layers {
		f, err := os.Open(layer.Path)
		if err != nil {
			t.Errorf("turn %d: a layer that is held: %v", turn, err)
			continue
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Error(err)
		}
		f.Close()
		if got := fmt.Sprintf("sha256:%x", h.Sum(nil)); got != src.DiffIDs[i] {
			t.Errorf("turn %d: a layer is %s, want %s", turn, got, src.DiffIDs[i])
		}
	}
	for _, path := range []string{set.Metadata, set.Drives[len(set.Drives)-1].Path} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("turn %d: %s, which is held: %v", turn, strings.TrimPrefix(path, filepath.Dir(filepath.Dir(path))), err)
		}
	}
	if err := s.Release(l.ID); err != nil {
		t.Error(err)
	}
}
