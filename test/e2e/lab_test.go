package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// lab is one pinnace dev on this machine, with directories, ports and device names of its own.
type lab struct {
	t        *testing.T
	dir      string
	api      string
	agents   string
	registry string
	prefix   string
	flags    []string // more flags of pinnace dev
	env      []string // of every command
	dev      *exec.Cmd
	devDone  chan error
	out      *lockedBuffer
}

var labs atomic.Int32

// newLab makes a lab and starts it. It ends with the test, and must leave nothing behind.
func newLab(t *testing.T, flags ...string) *lab {
	t.Helper()
	l := makeLab(t, flags...)
	l.start()
	return l
}

// makeLab makes a lab in which nothing runs yet.
func makeLab(t *testing.T, flags ...string) *lab {
	t.Helper()
	if skip != "" {
		t.Skip(skip)
	}
	// Not t.TempDir: the path of a unix socket has 107 bytes at most, and what is left in it is looked for.
	dir, err := os.MkdirTemp("", "pinlab-") //nolint:usetesting // See above.
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{
		t: t, dir: dir, flags: flags, prefix: fmt.Sprintf("pe%d", labs.Add(1)),
		api: freeAddr(t), agents: freeAddr(t), registry: freeAddr(t),
	}
	l.env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "HOME="+dir, "SUDO_USER=",
		"PINNACE_SERVER=", "PINNACE_TOKEN=", "PINNACE_ENV=", "DOCKER_CONFIG="+filepath.Join(dir, "docker"))
	t.Cleanup(l.end)
	return l
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func freePort(t *testing.T) int {
	t.Helper()
	addr, err := net.ResolveTCPAddr("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	return addr.Port
}

// start starts pinnace dev and waits until it says that it is up.
func (l *lab) start() {
	l.t.Helper()
	l.out = &lockedBuffer{}
	args := append([]string{
		"dev", "--data-dir", filepath.Join(l.dir, "data"), "--run-dir", filepath.Join(l.dir, "run"),
		"--listen", l.api, "--agent-listen", l.agents, "--registry-listen", l.registry, "--kernels", kernels,
		"--net-prefix", l.prefix, "--host-id", "lab", "--log-level", "info",
	}, l.flags...)
	if !strings.Contains(strings.Join(l.flags, " "), "--uplink") {
		args = append(args, "--uplink", "none")
	}
	l.dev = exec.Command(binary, args...)
	l.dev.Env = l.env
	l.dev.Stdout, l.dev.Stderr = l.out, l.out
	l.dev.WaitDelay = 5 * time.Second
	if err := l.dev.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.devDone = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(l.dev, l.devDone)
	l.eventually(60*time.Second, "pinnace dev is up", func() error {
		select {
		case err := <-l.devDone:
			l.devDone <- err
			l.t.Fatalf("pinnace dev ended: %v\n%s", err, l.out)
		default:
		}
		if !strings.Contains(l.out.String(), " is up (pid") {
			return errors.New("not yet")
		}
		return nil
	})
}

// stop ends pinnace dev as Ctrl-C does.
func (l *lab) stop() {
	l.t.Helper()
	if l.dev == nil {
		return
	}
	if err := l.dev.Process.Signal(os.Interrupt); err != nil {
		l.t.Errorf("interrupt pinnace dev: %v", err)
	}
	select {
	case err := <-l.devDone:
		if err != nil {
			l.t.Errorf("pinnace dev ended with %v after Ctrl-C\n%s", err, l.out)
		}
	case <-time.After(60 * time.Second):
		_ = l.dev.Process.Kill()
		<-l.devDone
		l.t.Errorf("pinnace dev did not end within a minute of Ctrl-C\n%s", l.out)
	}
	l.dev = nil
}

// kill ends pinnace dev as a power cut would.
func (l *lab) kill() {
	l.t.Helper()
	if err := l.dev.Process.Signal(syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	<-l.devDone
}

// end stops the lab and looks for what it left behind.
func (l *lab) end() {
	if l.t.Failed() {
		l.t.Logf("pinnace dev said:\n%s", l.out)
	}
	l.stop()
	for _, left := range l.leftOvers() {
		l.t.Errorf("left behind: %s", left)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.t.Error(err)
	}
}

func (l *lab) leftOvers() []string {
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if line := strings.ReplaceAll(string(b), "\x00", " "); strings.Contains(line, l.dir) {
			left = append(left, "process "+line)
		}
	}
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.dir) {
			left = append(left, "mount "+line)
		}
	}
	aliases, _ := filepath.Glob("/sys/class/net/*/ifalias")
	for _, a := range aliases {
		if b, _ := os.ReadFile(a); strings.Contains(string(b), l.dir) {
			left = append(left, "device "+filepath.Dir(a))
		}
	}
	links, _ := net.Interfaces()
	for _, link := range links {
		if strings.HasPrefix(link.Name, l.prefix) {
			left = append(left, "device "+link.Name)
		}
	}
	return left
}

// result is what a command gave.
type result struct {
	status         int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("status %d\nstdout:\n%s\nstderr:\n%s", r.status, r.stdout, r.stderr)
}

// pinnace runs one command line to its end.
func (l *lab) pinnace(args ...string) result {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = l.dir
	cmd.Env = l.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.t.Fatalf("pinnace %v: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// must runs a command that has to succeed and returns its stdout.
func (l *lab) must(args ...string) string {
	l.t.Helper()
	r := l.pinnace(args...)
	if r.status != 0 {
		l.t.Fatalf("pinnace %s: %s", strings.Join(args, " "), r)
	}
	return r.stdout
}

// refuse runs a command that has to fail with status, and to name the cause in words.
func (l *lab) refuse(status int, words []string, args ...string) result {
	l.t.Helper()
	r := l.pinnace(args...)
	if r.status != status {
		l.t.Errorf("pinnace %s: want status %d, got %s", strings.Join(args, " "), status, r)
		return r
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			l.t.Errorf("pinnace %s: the message does not say %q:\n%s", strings.Join(args, " "), w, r.stderr)
		}
	}
	return r
}

// manifest writes a manifest and returns its path.
func (l *lab) manifest(name, text string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name+".toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// web is the manifest of an app that serves on a public port.
func web(name string, port int) string {
	return fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "128MiB", disk = "64MiB" }
ports.web = { port = 8080, expose = "public", edge = "raw", public_port = %d }
rollout = { hold = "500ms", boot_timeout = "60s" }
stop = { drain = "1s", timeout = "5s" }
health.ready = { type = "http", port = "web", interval = "1s", timeout = "1s" }
`, name, port)
}

// get fetches a page, or fails the test.
func (l *lab) get(port int, path string) string {
	l.t.Helper()
	text, err := fetch(port, path)
	if err != nil {
		l.t.Fatal(err)
	}
	return text
}

func fetch(port int, path string) (string, error) {
	client := &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s answered %s: %s", path, res.Status, b)
	}
	return strings.TrimSpace(string(b)), err
}

// eventually tries until check returns nil.
func (l *lab) eventually(patience time.Duration, what string, check func() error) {
	l.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("not within %s: %s: %v\n%s", patience, what, err, l.out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// instance is one of `pinnace instances --json`.
type instance struct {
	ID      string `json:"id"`
	App     string `json:"app"`
	State   string `json:"state"`
	Attempt int    `json:"attempt"`
	Release string `json:"release"`
	Address string `json:"address"`
	Stages  []struct {
		Name       string `json:"name"`
		DurationMS string `json:"duration_ms"`
	} `json:"stages"`
	LastEnd *struct {
		Kind    string   `json:"kind"`
		Code    int      `json:"code"`
		Stage   string   `json:"stage"`
		Detail  string   `json:"detail"`
		LogTail []string `json:"log_tail"`
		Planned bool     `json:"planned"`
	} `json:"last_end"`
	Booted *struct {
		ImageManifestDigest string `json:"image_manifest_digest"`
		Driver              string `json:"driver"`
		DriverVersion       string `json:"driver_version"`
		KernelSHA256        string `json:"kernel_sha256"`
	} `json:"booted"`
}

func (l *lab) instances(args ...string) []instance {
	l.t.Helper()
	var list struct {
		Instances []instance `json:"instances"`
	}
	l.parse(l.must(append([]string{"instances", "--json"}, args...)...), &list)
	return list.Instances
}

func (l *lab) parse(text string, into any) {
	l.t.Helper()
	parse(l.t, text, into)
}

func parse(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// lockedBuffer is a bytes.Buffer for several writers.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
