package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest/secrettest"
)

// TestLocalVolumesAndSecrets runs an image with a volume and a secret: what its process has synced is there after the
// monitor of its microVM was killed, and in the next run, in which the volume is larger; it belongs to the process's user;
// and the secret is a file and a variable of the process and nowhere else on this machine.
func TestLocalVolumesAndSecrets(t *testing.T) {
	const canary = "c4nary/of+the=local run"
	l := newRegistryLab(t)
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	port := freePort(t)
	manifest := func(size string) string {
		return l.manifest("app", web("app", port)+fmt.Sprintf(`user = "10001:10001"
volumes.data = { path = "/srv/deep/data", size = %q }
secrets.api = { path = "/run/secrets/api", env = ["TOKEN"] }
`, size))
	}
	// Somebody's own file, which is none of what Pinnace writes.
	secret := filepath.Join(t.TempDir(), "api")
	if err := os.MkdirAll(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(secret, "TOKEN"), []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	run := l.local("-f", manifest("64MiB"), "--image", ref, "--secret", "api="+secret)
	run.says("web answers at")
	if got := l.get(port, "/file?path=/run/secrets/api/TOKEN"); got != canary {
		t.Errorf("the file of the secret has %q", got)
	}
	if got := l.get(port, "/env?name=TOKEN"); got != canary {
		t.Errorf("the variable of the secret is %q", got)
	}
	res, err := http.PostForm(fmt.Sprintf("http://127.0.0.1:%d/keep", port), url.Values{"path": {"/srv/deep/data/file"}, "content": {"precious"}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("keep a file: %s", res.Status)
	}
	wantNowhere(t, l, canary)

	boot := l.get(port, "/boot")
	monitors := l.processes("qemu-system")
	var pid int
	if len(monitors) != 1 {
		t.Fatalf("monitors: %v", monitors)
	}
	if _, err := fmt.Sscanf(monitors[0], "/proc/%d/cmdline", &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.eventually(2*time.Minute, "another machine answers", func() error {
		got, err := fetch(port, "/boot")
		if err == nil && got == boot {
			err = fmt.Errorf("the first one answers")
		}
		return err
	})
	if got := l.get(port, "/file?path=/srv/deep/data/file"); got != "precious" {
		t.Errorf("after the kill the file has %q", got)
	}
	wantNowhere(t, l, canary)
	run.interrupt()
	run.ends(0)

	run = l.local("-f", manifest("128MiB"), "--image", ref, "--secret", "api="+secret)
	run.says("web answers at")
	if !strings.Contains(run.stderr.String(), "grown from 64 MiB") {
		t.Errorf("nothing is said of the volume:\n%s", run.stderr)
	}
	if got := l.get(port, "/file?path=/srv/deep/data/file"); got != "precious" {
		t.Errorf("in the next run the file has %q", got)
	}
	var size int
	if _, err := fmt.Sscan(l.get(port, "/size?path=/srv/deep/data"), &size); err != nil || size < 100 {
		t.Errorf("the volume has %d MiB, %v", size, err)
	}
	run.interrupt()
	run.ends(0)
	wantNowhere(t, l, canary)
}

// wantNowhere looks for a secret in all that a lab has on its disk, and in the processes of this machine.
func wantNowhere(t *testing.T, l *lab, secret string) {
	t.Helper()
	finder := secrettest.For(secret)
	onDisk, err := finder.Below(l.dir)
	if err != nil || len(onDisk) > 0 {
		t.Errorf("the secret is in %v, %v", onDisk, err)
	}
	started, err := finder.InProcesses()
	if err != nil || len(started) > 0 {
		t.Errorf("the secret is in %v, %v", started, err)
	}
}
