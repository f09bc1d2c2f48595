package image_test

import (
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

const crashDir = "PINNACE_IMAGE_CRASH_DIR"

// kills is the environment variable with the number of random kills; without it there are a few.
const kills = "PINNACE_IMAGE_KILLS"

// killCount is how often a test kills.
func killCount(t *testing.T, few int) int {
	t.Helper()
	text := os.Getenv(kills)
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number", kills, text)
	}
	return n
}

// A process that pulls and collects in a loop is killed, again and again at another moment. Whatever it left, no
// file has the wrong content, and the next Pull makes the image complete without fetching a layer that is.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		pullUntilKilled(t, dir)
		return
	}
	dir := filepath.Join(t.TempDir(), "store")
	src := crashImage().Build()
	began := time.Now()
	if err := pullAndCollect(t, dir, src); err != nil {
		t.Fatal(err)
	}
	cycle := time.Since(began)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	moments, resumed := map[string]int{}, 0
	count := killCount(t, 8)
	for i := range count {
		when := fmt.Sprintf("seed %d, kill %d", seed, i)
		killAfter(t, dir, time.Duration(random.Int64N(int64(2*cycle))))
		moments[state(t, dir)]++

		s := openAlone(t, dir, when)
		sound(t, s, when)
		img, ok, err := s.Lookup(src.ManifestDigest)
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if ok && "sha256:"+img.MetadataSHA256 != imagetest.Digest(read(t, img.Metadata)) {
			t.Errorf("%s: an image was found whose metadata is wrong", when)
		}
		want := map[string]int{}
		for i, diffID := range src.DiffIDs {
			want[src.BlobDigests[i]] = src.Requests(src.BlobDigests[i])
			if _, err := os.Stat(layerPath(dir, diffID)); err != nil {
				want[src.BlobDigests[i]]++
			} else if !ok {
				resumed++
			}
		}
		img = pull(t, s, src)
		for blob, n := range want {
			if got := src.Requests(blob); got != n {
				t.Errorf("%s: %s was fetched %d times, want %d", when, blob, got, n)
			}
		}
		if _, err := s.Disks(img, 2); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		sound(t, s, when)
		if random.IntN(2) == 0 {
			if _, err := s.GC(t.Context(), image.GCOptions{}); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wrong(t, dir)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills; layers/metadata/packs/images under final names when killed: %v; layers that pulls of incomplete images found complete: %d",
		count, moments, resumed)
}

// openAlone opens the store and checks that it has removed what was unfinished. A process that the killed one was just
// about to start has its lock as well, for as long as it takes to become another program: what is locked is left to
// the next Open.
func openAlone(t *testing.T, dir, when string) *image.Store {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s := open(t, dir)
		left := unfinished(t, dir)
		if len(left) == 1 {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: after Open tmp has %v, want this process's directory only", when, left)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killAfter runs this test as a child, and kills it a while after it has begun.
func killAfter(t *testing.T, dir string, delay time.Duration) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestKilledAtAnyMoment$")
	child.Env = append(os.Environ(), crashDir+"="+dir)
	child.Stderr = os.Stderr
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
	time.Sleep(delay)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// A confined process that it was just starting has what it has, its lock too, until it is another program.
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil {
		t.Fatal("child ended by itself")
	}
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
		if err := pullAndCollect(t, dir, src); err != nil {
			t.Fatal(err)
		}
	}
}

func pullAndCollect(t *testing.T, dir string, src *imagetest.Image) error {
	s, err := image.Open(dir)
	if err != nil {
		return err
	}
	img := pull(t, s, src)
	if _, err := s.Disks(img, 2); err != nil {
		return err
	}
	_, err = s.GC(t.Context(), image.GCOptions{})
	return errors.Join(err, s.Close())
}

// state counts what the store has under final names.
func state(t *testing.T, dir string) string {
	t.Helper()
	var counts []string
	for _, pattern := range []string{"layers/*.tar", "metadata/*", "packs/*", "images/*"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		counts = append(counts, fmt.Sprint(len(paths)))
	}
	return strings.Join(counts, "/")
}
