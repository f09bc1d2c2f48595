package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestVolumes: what a workload has synced to its volume is there after a redeploy, a rollback, a kill of its monitor and
// a kill of its agent, and only one machine has the volume at any time.
func TestVolumes(t *testing.T) {
	a := newApart(t)
	l := a.l
	port := freePort(t)
	manifest := l.manifest("app", web("app", port)+"volumes.data = { path = \"/srv/data\", size = \"64MiB\" }\n")
	v1, v2 := l.push("app", "v1", workloadImage(t, "1", nil)), l.push("app", "v2", workloadImage(t, "2", nil))
	l.must("deploy", "-f", manifest, "--image", v1)

	const path = "/srv/data/file"
	keep := func(content string) {
		t.Helper()
		res, err := http.PostForm(fmt.Sprintf("http://127.0.0.1:%d/keep", port), url.Values{"path": {path}, "content": {content}})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("keep %q: %s", content, res.Status)
		}
	}
	has := func(when, want string) {
		t.Helper()
		l.eventually(2*time.Minute, when+" it answers", func() error {
			_, err := fetch(port, "/boot")
			return err
		})
		if got := l.get(port, "/file?path="+path); got != want {
			t.Errorf("%s the file has %q, want %q", when, got, want)
		}
		if n := count(t, filepath.Join(l.dir, "data", "agent", "volumes", "vol-*")); n != 1 {
			t.Errorf("%s there are %d volumes", when, n)
		}
	}
	keep("one")
	l.must("deploy", "-f", manifest, "--image", v2)
	if got := l.get(port, "/"); got != "version 2" {
		t.Errorf("after the deploy: %q", got)
	}
	has("after the deploy", "one")
	keep("two")
	l.must("rollback", "app")
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("after the rollback: %q", got)
	}
	has("after the rollback", "two")

	keep("three")
	boot := l.get(port, "/boot")
	monitors := l.processes("qemu-system")
	var pid int
	if len(monitors) != 1 {
		t.Fatalf("monitors: %v", monitors)
	}
	if _, err := fmt.Sscanf(monitors[0], "/proc/%d/cmdline", &pid); err != nil {
		t.Fatal(err)
	}
	a.kill() // and nobody is there to see the end of the machine
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.start()
	l.eventually(2*time.Minute, "another machine answers", func() error {
		got, err := fetch(port, "/boot")
		if err == nil && got == boot {
			err = fmt.Errorf("the first one answers")
		}
		return err
	})
	has("after the kills", "three")
	l.wantNoStrays(t)
	l.must("stop", "app")
}
