package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// newRegistryLab is a lab with a registry and nothing else.
func newRegistryLab(t *testing.T) *lab {
	t.Helper()
	l := makeLab(t)
	l.out = &lockedBuffer{}
	l.dev = exec.Command(binary, "registry", "--data-dir", filepath.Join(l.dir, "registry"), "--listen", l.registry)
	l.dev.Env, l.dev.Stdout, l.dev.Stderr = l.env, l.out, l.out
	if err := l.dev.Start(); err != nil {
		t.Fatal(err)
	}
	l.devDone = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(l.dev, l.devDone)
	l.eventually(30*time.Second, "the registry answers", func() error {
		conn, err := net.Dial("tcp", l.registry)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	return l
}

// A localRun is one pinnace local.
type localRun struct {
	l           *lab
	cmd         *exec.Cmd
	out, stderr *lockedBuffer
	done        chan error
}

// localArgs are those of a pinnace local that runs machines in a lab.
func (l *lab) localArgs(args ...string) []string {
	return l.localOnly(append(args, "--kernels", kernels, "--uplink", "none", "--accel", "tcg")...)
}

// localOnly are those of one that does not.
func (l *lab) localOnly(args ...string) []string {
	return append(append([]string{"local"}, args...), "--data-dir", filepath.Join(l.dir, "data"), "--run-dir", filepath.Join(l.dir, "run"))
}

// local starts pinnace local. It is killed at the end of the test, if it runs still.
func (l *lab) local(args ...string) *localRun {
	l.t.Helper()
	r := &localRun{l: l, out: &lockedBuffer{}, stderr: &lockedBuffer{}, done: make(chan error, 1)}
	r.cmd = exec.Command(binary, l.localArgs(args...)...)
	r.cmd.Dir, r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = l.dir, l.env, r.out, r.stderr
	r.cmd.WaitDelay = 5 * time.Second
	if err := r.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("pinnace local %v\nstdout:\n%s\nstderr:\n%s", args, r.out, r.stderr)
		}
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Signal(os.Interrupt)
			r.end(60 * time.Second)
		}
	})
	return r
}

// says waits until something was written to stderr.
func (r *localRun) says(text string) {
	r.l.t.Helper()
	r.l.eventually(2*time.Minute, fmt.Sprintf("pinnace local says %q", text), func() error {
		if strings.Contains(r.stderr.String(), text) {
			return nil
		}
		select {
		case err := <-r.done:
			r.done <- err
			r.l.t.Fatalf("pinnace local has ended (%v) without saying %q:\n%s", err, text, r.stderr)
		default:
		}
		return fmt.Errorf("not yet; it says:\n%s", r.stderr)
	})
}

// end waits for the end and returns the status; -1 when there is none within patience.
func (r *localRun) end(patience time.Duration) int {
	r.l.t.Helper()
	select {
	case <-r.done:
		r.done <- nil
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		r.l.t.Errorf("pinnace local has not ended within %s; it says:\n%s", patience, r.stderr)
		_ = r.cmd.Process.Kill()
		<-r.done
		r.done <- nil
		return -1
	}
}

func (r *localRun) interrupt() {
	r.l.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.l.t.Fatal(err)
	}
}

// ends waits for the end and checks the status, and what was said.
func (r *localRun) ends(status int, words ...string) {
	r.l.t.Helper()
	if got := r.end(2 * time.Minute); got != status {
		r.l.t.Errorf("status %d, want %d:\n%s", got, status, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr.String(), w) {
			r.l.t.Errorf("stderr does not say %q:\n%s", w, r.stderr)
		}
	}
}

// job is the manifest of an app that runs once.
func job(name, more string) string {
	return fmt.Sprintf("schema = \"v1\"\nname = %q\nresources = { memory = \"128MiB\", disk = \"64MiB\" }\nrestart = \"never\"\n%s\n", name, more)
}

// TestLocalBesideDev runs two beside a pinnace dev that has the port which all of them want, with one image store.
func TestLocalBesideDev(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port)+"[ports.echo]\nport = 5300\nprotocol = \"udp\"\n")
	ref := l.push("app", "v1", workloadImage(t, "1", func(c *v1.Config) { c.Env = append(c.Env, "PORTS=1") }))
	l.must("deploy", "-f", m, "--image", ref)
	instance := l.instances()[0].ID

	one := l.local("-f", m, "--image", ref)
	one.says("web answers at")
	two := l.local("-f", m, "--image", ref, "--name", "two", "--publish", "web="+fmt.Sprint(freePort(t)))
	two.says("web answers at")
	for _, want := range []string{
		"resolved " + ref + " to ", fmt.Sprintf("note: port %d is taken on this machine, so web is at 127.0.0.1:", port),
		"pull ", "2 layers, cached", "network ", "disks ", "vmm ", "kernel ", "init ", "ready ",
	} {
		if !strings.Contains(one.stderr.String(), want) {
			t.Errorf("stderr does not say %q:\n%s", want, one.stderr)
		}
	}
	if strings.Contains(two.stderr.String(), "so web is at") {
		t.Errorf("--publish did not choose:\n%s", two.stderr)
	}
	again := l.pinnace(l.localArgs("-f", m, "--image", ref)...)
	if again.status != 5 || !strings.Contains(again.stderr, "app runs locally already") || !strings.Contains(again.stderr, "--name") {
		t.Errorf("a second one of the same name: %s", again)
	}
	for _, r := range []*localRun{one, two} {
		if got, err := fetch(r.url(t, "web"), "/"); err != nil || got != "version 1" {
			t.Errorf("got %q, %v", got, err)
		}
		if got := r.out.String(); got != "listening, version 1\n" {
			t.Errorf("stdout: got %q", got)
		}
		conn := l.dial("udp", r.port(t, "echo answers at udp://"))
		got := make([]byte, 10)
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		if n, err := conn.Read(got); err != nil || string(got[:n]) != "hello" {
			t.Errorf("UDP: got %q, %v", got[:n], err)
		}
	}
	if list := l.must(l.localOnly("ls")...); !strings.Contains(list, "app ") || !strings.Contains(list, "two ") || strings.Count(list, "running") != 2 {
		t.Errorf("ls: got %q", list)
	}

	if got := l.pinnace("local", "exec", "--run-dir", filepath.Join(l.dir, "run"), "app", "--", "/workload", "exit", "7"); got.status != 7 || got.stdout != "exiting as told, with 7\n" {
		t.Errorf("exec: %s", got)
	}
	one.interrupt()
	one.ends(0, "stopping; press Ctrl-C again to kill it", "the process exited with status 0, as planned", "app was stopped")
	if got := one.out.String(); got != "listening, version 1\ngot SIGTERM, stopping\n" {
		t.Errorf("stdout: got %q", got)
	}
	if got, err := fetch(two.url(t, "web"), "/"); err != nil || got != "version 1" {
		t.Errorf("the other one, when one had ended: got %q, %v", got, err)
	}
	two.interrupt()
	two.ends(0)
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("what was deployed: got %q", got)
	}
	if list := l.instances(); len(list) != 1 || list[0].ID != instance || list[0].Attempt != 1 {
		t.Errorf("what was deployed: got %+v", list)
	}
	if left, _ := filepath.Glob(filepath.Join(l.dir, "run", "local", "[a-z]*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// url is the port of this machine at which a port answers over HTTP.
func (r *localRun) url(t *testing.T, name string) int { return r.port(t, name+" answers at http://") }

// port is what follows a text and 127.0.0.1 on stderr.
func (r *localRun) port(t *testing.T, before string) int {
	t.Helper()
	_, at, ok := strings.Cut(r.stderr.String(), before+"127.0.0.1:")
	var port int
	if _, err := fmt.Sscanf(at, "%d", &port); !ok || err != nil {
		t.Fatalf("no %s in:\n%s", before, r.stderr)
	}
	return port
}

// TestLocalKilled kills pinnace local: what it ran goes on, and the next one of the same name ends it.
func TestLocalKilled(t *testing.T) {
	l := newRegistryLab(t)
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	port := freePort(t)
	m := l.manifest("app", web("app", port))
	first := l.local("-f", m, "--image", ref)
	first.says("web answers at")
	boot := l.get(port, "/boot")
	if err := first.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	first.end(time.Minute)
	if got := l.get(port, "/boot"); got != boot {
		t.Errorf("after the kill: got %q, want %q", got, boot)
	}
	if list := l.must(l.localOnly("ls")...); !strings.Contains(list, "left") {
		t.Errorf("ls: got %q", list)
	}

	// One of another name has nothing to do with it, also when it is not told to stop gently.
	other := l.local("-f", l.manifest("other", job("other", `command = ["ignore"]
stop = { timeout = "10m" }`)), "--image", ref)
	l.eventually(time.Minute, "it ignores what it is told", func() error {
		if !strings.Contains(other.out.String(), "ignoring SIGTERM") {
			return fmt.Errorf("it says %q", other.out)
		}
		return nil
	})
	if got := l.get(port, "/boot"); got != boot {
		t.Errorf("beside another one: got %q, want %q", got, boot)
	}
	other.interrupt()
	other.says("stopping, for 10m0s at most")
	other.interrupt()
	other.ends(0, "killing it", "killed at once, as was asked")

	next := l.local("-f", m, "--image", ref)
	next.says("web answers at")
	if !strings.Contains(next.stderr.String(), "which an earlier run that was killed has left") {
		t.Errorf("nothing is said of what was left:\n%s", next.stderr)
	}
	if got := l.get(port, "/boot"); got == boot { // at the port that it had
		t.Error("the same machine answers")
	}
	if err := next.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next.end(time.Minute)
	l.must(l.localArgs("rm", "app")...)
	if _, err := fetch(port, "/"); err == nil {
		t.Error("it answers after rm")
	}
	if left, _ := filepath.Glob(filepath.Join(l.dir, "*", "local", "[a-z]*")); len(left) != 1 { // what other has left
		t.Errorf("left behind: %v", left)
	}
}

// TestLocalFresh begins anew, after a run that was killed with a volume in use, and removes what is left of a name.
func TestLocalFresh(t *testing.T) {
	l := newRegistryLab(t)
	port := freePort(t)
	m := l.manifest("app", `vars = ["GREETING"]
`+web("app", port)+`
user = "0:0"
volumes.data = { path = "/data", size = "64MiB" }
`)
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	vars := filepath.Join(t.TempDir(), "vars.env")
	if err := os.WriteFile(vars, []byte("GREETING='from a file'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := l.local("-f", m, "--image", ref, "--vars-file", vars)
	first.says("web answers at")
	if got := l.get(port, "/env?name=GREETING"); got != "from a file" {
		t.Errorf("variable: got %q", got)
	}
	res, err := http.PostForm(fmt.Sprintf("http://127.0.0.1:%d/keep", port), url.Values{"path": {"/data/kept"}, "content": {"old"}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := l.get(port, "/file?path=/data/kept"); got != "old" {
		t.Errorf("the file: got %q", got)
	}
	if err := first.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	first.end(time.Minute)

	next := l.local("-f", m, "--image", ref, "--var", "GREETING=hello", "--fresh")
	next.says("web answers at")
	if got, err := fetch(port, "/file?path=/data/kept"); err == nil {
		t.Errorf("with new volumes: got %q", got)
	}
	if got := l.get(port, "/env?name=GREETING"); got != "hello" {
		t.Errorf("variable: got %q", got)
	}
	next.interrupt()
	next.ends(0, "which an earlier run that was killed has left")
	if list := l.must(l.localOnly("ls")...); !strings.Contains(list, "stopped") || !strings.Contains(list, "data (") {
		t.Errorf("ls: got %q", list)
	}
	l.refuse(5, []string{"app has volumes: data (", "--volumes"}, l.localArgs("rm", "app")...)
	l.must(l.localArgs("rm", "app", "--volumes")...)
	if left, _ := filepath.Glob(filepath.Join(l.dir, "data", "local", "[a-z]*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
