package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestMovedAndDeletedTag moves the tag that was deployed, and then deletes it: a restart, a replacement and
// a rollback still give exactly the image that was pinned, and nothing but digests is ever asked for.
func TestMovedAndDeletedTag(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port))
	first := workloadImage(t, "1", nil)
	ref := l.push("app", "stable", first)
	l.must("deploy", "-f", m, "--image", ref)
	l.push("app", "stable", workloadImage(t, "moved", nil))

	mark := len(l.accessLog(t))
	want := digestOf(t, first)
	pinned := func(what string) {
		t.Helper()
		if got := l.get(port, "/"); got != "version 1" {
			t.Errorf("%s: got %q", what, got)
		}
		if got := l.instances()[0].Booted.ImageManifestDigest; got != want {
			t.Errorf("%s: booted %s, want %s", what, got, want)
		}
	}

	if _, err := fetch(port, "/exit?code=1"); err == nil {
		t.Fatal("the workload did not exit")
	}
	l.eventually(60*time.Second, "the instance is ready again", func() error {
		if i := l.instances()[0]; i.Attempt < 2 || i.State != "ready" {
			return fmt.Errorf("%+v", i)
		}
		return nil
	})
	pinned("restart")

	l.deleteTag(t, ref)
	// The cache is emptied, so that the image has to be pulled again, by digest.
	l.stop()
	if err := os.RemoveAll(filepath.Join(l.dir, "data", "agent", "images")); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.eventually(60*time.Second, "the instance is back after a restart of everything", func() error {
		if i := l.instances()[0]; i.State != "ready" {
			return fmt.Errorf("%+v", i)
		}
		return nil
	})
	pinned("restart of everything, with an empty cache")

	// Another release, and back.
	second := l.push("app", "other", workloadImage(t, "2", nil))
	l.must("deploy", "-f", m, "--image", second)
	beforeRollback := len(l.accessLog(t))
	l.must("rollback", "app")
	pinned("rollback")
	if asked := l.accessLog(t)[beforeRollback:]; len(asked) > 0 {
		t.Errorf("a rollback to a cached release asked the registry:\n%s", strings.Join(asked, "\n"))
	}

	byDigest := 0
	for _, line := range l.accessLog(t)[mark:] {
		switch {
		case !strings.Contains(line, "pinnace-agent"):
			// The test itself, and the CLI, which resolved "other".
		case strings.HasPrefix(line, "GET /v2/ "):
			// How a client asks which protocol and credentials a registry wants; it names nothing.
		case !strings.Contains(line, "/sha256:"):
			t.Errorf("the agent asked for something without a digest: %s", line)
		default:
			byDigest++
		}
	}
	if byDigest == 0 {
		t.Error("the access log shows no request of the agent at all")
	}
}

// accessLog are the lines of the registry's access log.
func (l *lab) accessLog(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "data", "registry", "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// deleteTag removes a tag, and the manifest that it names now.
func (l *lab) deleteTag(t *testing.T, text string) {
	t.Helper()
	ref, err := name.ParseReference(text, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Head(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref.Context().Digest(desc.Digest.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref); err == nil {
		t.Fatal("the tag is still there")
	}
}
