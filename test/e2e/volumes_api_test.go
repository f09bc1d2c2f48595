package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestVolumeCommands takes a volume through its life with the CLI while its workload runs: it is copied, exported, grown,
// detached, and comes back from the file; a port of the instance is reached from here; and in the end all of it is
// destroyed.
func TestVolumeCommands(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	manifest := l.manifest("app", web("app", port)+"volumes.data = { path = \"/srv/data\", size = \"64MiB\" }\n")
	l.must("deploy", "-f", manifest, "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	res, err := http.PostForm(fmt.Sprintf("http://127.0.0.1:%d/keep", port), url.Values{"path": {"/srv/data/file"}, "content": {"precious"}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()

	l.must("volumes", "snapshot", "app/0", "before")
	file, copied := filepath.Join(l.dir, "now.ext4"), filepath.Join(l.dir, "before.ext4")
	l.must("volumes", "export", "app/0/data", file)
	l.must("volumes", "export", "app/0/data", copied, "--snapshot", "before")
	for _, path := range []string{file, copied} {
		if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), "precious") || len(b) != 64<<20 {
			t.Errorf("%s has %d bytes, or not the file: %v", path, len(b), err)
		}
	}
	l.refuse(5, []string{"exists already"}, "volumes", "export", "app/0", file)
	l.refuse(2, []string{"volumes only grow"}, "volumes", "grow", "app/0", "64KiB")
	l.refuse(5, []string{"stop it first"}, "volumes", "detach", "app/0")

	l.forwards(t, "app", "web")
	l.eventually(time.Minute, "the guest says what it uses", func() error {
		if out := l.must("top"); !strings.Contains(out, "app/0") || strings.Contains(out, "-  -  -") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	l.must("volumes", "grow", "app/0", "128MiB")
	l.must("restart", "app")
	var size int
	if _, err := fmt.Sscan(l.get(port, "/size?path=/srv/data"), &size); err != nil || size < 100 {
		t.Errorf("grown, the volume has %d MiB, %v", size, err)
	}

	l.must("stop", "app")
	l.must("volumes", "detach", "app/0")
	l.must("volumes", "import", "app/0/data", copied)
	l.must("deploy", "-f", manifest, "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	if got := l.get(port, "/file?path=/srv/data/file"); got != "precious" {
		t.Errorf("from the file came %q", got)
	}
	l.refuse(2, []string{"was not confirmed"}, "app", "destroy", "app")
	l.must("app", "destroy", "app", "--confirm", "app")
	l.eventually(time.Minute, "nothing of it is left", func() error {
		left := count(t, filepath.Join(l.dir, "data", "agent", "volumes", "vol-*"))
		if out := l.must("volumes", "list"); left > 1 || strings.Count(out, "\n") > 2 || len(l.instances()) > 0 {
			return fmt.Errorf("%d volumes on the host:\n%s", left, out)
		}
		return nil
	})
}

// forwards asks the workload for its version through a port of this machine.
func (l *lab) forwards(t *testing.T, target, port string) {
	t.Helper()
	cmd := l.command("port-forward", target, port)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended, which Wait tells
		if err := cmd.Wait(); err != nil {
			t.Errorf("port-forward ended: %v", err)
		}
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address, _, _ := strings.Cut(line, " ")
	for range 3 {
		res, err := http.Get("http://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		var b [64]byte
		n, _ := res.Body.Read(b[:])
		res.Body.Close()
		if strings.TrimSpace(string(b[:n])) != "version 1" {
			t.Errorf("through the port came %q", b[:n])
		}
	}
}
