package image_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// What a kernel shows of each image of the corpus is what umoci unpacks of it, in every property of every name,
// but for what the case lists, with the reason; and what a case lists is so.
func TestCorpusEqualsUmoci(t *testing.T) {
	umoci := needUmoci(t)
	compared, start := 0, time.Now()
	for _, c := range Corpus() {
		if c.Refused != "" {
			continue
		}
		t.Run(c.Title(), func(t *testing.T) {
			src := c.Build().Build()
			dir := t.TempDir()
			if err := src.WriteLayout(filepath.Join(dir, "layout"), "case"); err != nil {
				t.Fatal(err)
			}
			got := seen(t, pull(t, open(t, filepath.Join(dir, "store")), src))
			want, err := unpack(t, umoci, filepath.Join(dir, "layout"), "case")
			if err != nil {
				if reason := c.Umoci["image"]; reason == "" || !strings.Contains(err.Error(), reason) {
					t.Errorf("umoci: %v\nthe corpus says %q", err, reason)
				}
				return
			}
			compared++
			checkTimes(t, start, want, c.Umoci)
			differences := Differences(got, want)
			for at, what := range differences {
				if c.Umoci[at] == "" {
					t.Errorf("%s: %.300s", at, what)
				}
			}
			for at, reason := range c.Umoci {
				if differences[at] == "" {
					t.Errorf("%s: no difference, and the corpus says there is one: %s", at, reason)
				}
			}
		})
	}
	t.Logf("%d images compared", compared)
}

// checkTimes makes sure that times which are said to be umoci's own are.
func checkTimes(t *testing.T, start time.Time, nodes []Node, reasons map[string]string) {
	t.Helper()
	for _, n := range nodes {
		if reasons[n.Path+": time"] != WhenUnpacked {
			continue
		}
		if seconds, _, _ := strings.Cut(n.Mtime, "."); seconds < fmt.Sprint(start.Unix()-1) {
			t.Errorf("%s: umoci's time is %s, which is not when it was unpacked", n.Path, n.Mtime)
		}
	}
}

// The authors' own tool finds no fault in what is made of the corpus, all of it in one image.
func TestCorpusPassesFsck(t *testing.T) {
	fsck := erofstest.Fsck(t, 512)
	img := pull(t, open(t, t.TempDir()), Together().Build())
	var args []string
	for _, l := range img.Layers {
		args = append(args, "--device="+l.Path)
	}
	if out, err := exec.Command(fsck, append(args, "--extract", img.Metadata)...).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

func needUmoci(t *testing.T) string {
	t.Helper()
	erofstest.Require(t)
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("needs umoci: ", err)
	}
	return umoci
}

// unpack lets umoci unpack an image of an OCI image layout, and lists the tree.
func unpack(t *testing.T, umoci, layout, tag string) ([]Node, error) {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.Command(umoci, "unpack", "--image", layout+":"+tag, bundle).CombinedOutput(); err != nil {
		return nil, &umociError{string(out)}
	}
	nodes, err := List(filepath.Join(bundle, "rootfs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return nodes, nil
}

type umociError struct{ output string }

func (e *umociError) Error() string { return e.output }

// seen is the tree of an image as this machine's kernel shows it.
func seen(t *testing.T, img *image.Image) []Node {
	t.Helper()
	meta := erofstest.Loop(t, img.Metadata)
	var layers []string
	for _, l := range img.Layers {
		layers = append(layers, erofstest.Loop(t, l.Path))
	}
	var nodes []Node
	erofstest.Namespace(t, func() {
		mounted := erofstest.Mount(t, meta, layers)
		defer erofstest.Unmount(t, mounted)
		var err error
		if nodes, err = List(mounted, nil); err != nil {
			t.Error(err)
		}
	})
	return nodes
}
