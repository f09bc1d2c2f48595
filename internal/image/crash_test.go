package image_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

const crashDir = "PINNACE_IMAGE_CRASH_DIR"

// A process that pulls in a loop is killed, again and again at another moment. Whatever it left, the next
// Open and Pull make right, and at no time has a file under a final name the wrong content.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		pullUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	src := crashImage().Build()
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	moments := map[string]int{}
	for range 20 {
		child := exec.Command(os.Args[0], "-test.run=^TestKilledAtAnyMoment$")
		child.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		// The child says when it begins; a delay from there is the moment, not a wait for something.
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal("child said nothing: ", err)
		}
		time.Sleep(time.Duration(random.Int64N(int64(60 * time.Millisecond))))
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := child.Wait(); err == nil {
			t.Fatal("child ended by itself")
		}
		moments[state(t, dir)]++

		s := open(t, dir)
		if left := unfinished(t, dir); len(left) != 1 {
			t.Errorf("after Open tmp has %v, want this process's directory only", left)
		}
		img, ok, err := s.Lookup(src.ManifestDigest)
		if err != nil {
			t.Error(err)
		}
		if ok && "sha256:"+img.MetadataSHA256 != imagetest.Digest(read(t, img.Metadata)) {
			t.Error("an image was found whose metadata is wrong")
		}
		img = pull(t, s, src)
		if _, err := s.Disks(img, 2); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wrong(t, dir)
		// Every other time the next child starts from nothing, else from a part of what there is.
		thin(t, dir, random)
	}
	t.Logf("files under final names when killed: %v", moments)
}

func crashImage() *imagetest.Builder {
	b := imagetest.New()
	for i := range 6 {
		b.Layer(imagetest.File(fmt.Sprintf("f%d", i), strings.Repeat(fmt.Sprint(i), 400_000)))
	}
	return b
}

func pullUntilKilled(t *testing.T, dir string) {
	src := crashImage().Build()
	fmt.Println("pulling")
	for {
		s, err := image.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		img := pull(t, s, src)
		if _, err := s.Disks(img, 2); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		thin(t, dir, rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)))
	}
}

// thin removes some of the store's files, record first, as a garbage collection would.
func thin(t *testing.T, dir string, random *rand.Rand) {
	t.Helper()
	for _, pattern := range []string{"images/*", "packs/*", "metadata/*", "layers/*.tar", "layers/*.idx"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if layer, ok := strings.CutSuffix(path, ".idx"); ok {
				if _, err := os.Stat(layer + ".tar"); err == nil {
					continue
				}
			}
			if random.IntN(2) == 0 {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// state counts what the store has under final names, and checks that none of it is wrong.
func state(t *testing.T, dir string) string {
	t.Helper()
	var counts []string
	for _, pattern := range []string{"layers/*.tar", "metadata/*", "packs/*", "images/*"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, ".tar") {
				want := "sha256:" + strings.TrimSuffix(filepath.Base(path), ".tar")
				if got := imagetest.Digest(read(t, path)); got != want {
					t.Errorf("killed: %s is %s", path, got)
				}
			}
			if strings.Contains(pattern, "packs") {
				readGPT(t, read(t, path))
			}
		}
		counts = append(counts, fmt.Sprint(len(paths)))
	}
	return strings.Join(counts, "/")
}
