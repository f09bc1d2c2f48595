package e2e

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// TestBadInput gives everything that can be wrong, one after the other, while a good release serves: each
// has one clear message and its own status, and the good release goes on serving.
func TestBadInput(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port))
	good := l.push("app", "good", workloadImage(t, "good", nil))
	l.must("deploy", "-f", m, "--image", good)

	stillServes := func(t *testing.T) {
		t.Helper()
		if got := l.get(port, "/"); got != "version good" {
			t.Errorf("the good release does not serve: got %q", got)
		}
	}
	deploy := func(t *testing.T, status int, image string, words ...string) result {
		t.Helper()
		defer stillServes(t)
		return l.refuse(status, words, "deploy", "-f", m, "--image", image)
	}
	otherArch := "arm64"
	if runtime.GOARCH == otherArch {
		otherArch = "amd64"
	}

	t.Run("tag that does not exist", func(t *testing.T) {
		deploy(t, 4, l.registry+"/app:nosuch", "nosuch", "hint:")
	})
	t.Run("repository that does not exist", func(t *testing.T) {
		deploy(t, 4, l.registry+"/nosuch:v1", "nosuch")
	})
	t.Run("registry that is down", func(t *testing.T) {
		deploy(t, 6, freeAddr(t)+"/app:v1", "registry", "hint:")
	})
	t.Run("registry that refuses the credentials", func(t *testing.T) {
		closed := l.closedRegistry(t)
		l.dockerLogin(t, closed, "user", "wrong")
		deploy(t, 3, closed+"/app:good", closed)
		l.dockerLogin(t, closed, "user", "right")
		r := l.pinnace("release", "create", "-f", m, "--image", closed+"/app:good")
		if r.status != 0 {
			t.Errorf("with the right credentials: %s", r)
		}
	})
	t.Run("image for another architecture", func(t *testing.T) {
		img, err := mutate.AppendLayers(empty.Image, layer(t, file{"workload", 0o755, workload}))
		if err != nil {
			t.Fatal(err)
		}
		img = withConfig(t, img, otherArch, v1.Config{Entrypoint: []string{"/workload"}})
		deploy(t, 5, l.push("app", "alien", img), otherArch)
	})
	t.Run("blob whose bytes do not match", func(t *testing.T) {
		ref := l.push("app", "rotten", workloadImage(t, "rotten", nil))
		l.corruptNewestLayer(t)
		deploy(t, 7, ref, "sha256:")
	})
	t.Run("entrypoint that is not there", func(t *testing.T) {
		img := workloadImage(t, "lost", func(c *v1.Config) { c.Entrypoint = []string{"/no/such/program"} })
		deploy(t, 7, l.push("app", "lost", img), "/no/such/program")
	})
	t.Run("process that exits at once", func(t *testing.T) {
		img := workloadImage(t, "short", func(c *v1.Config) { c.Cmd = []string{"exit", "42"} })
		r := deploy(t, 7, l.push("app", "short", img), "42")
		if !strings.Contains(r.stderr, "exiting as told, with 42") {
			t.Errorf("the last lines of the process are not shown:\n%s", r.stderr)
		}
	})
	t.Run("manifest with five errors", func(t *testing.T) {
		bad := l.manifest("bad", `schema = "v1"
name = "App"
resources = { memory = "128MB" }
ports.web = { port = 70000 }
restart = "sometimes"
hosts = ["a"]
`)
		r := l.refuse(2, []string{"5 errors", "bad.toml:2:", "bad.toml:3:", "bad.toml:4:", "bad.toml:5:", "bad.toml:6:", "128MiB"},
			"deploy", "-f", bad, "--image", good)
		if n := strings.Count(r.stderr, ": E1"); n != 5 {
			t.Errorf("%d errors are shown, want 5:\n%s", n, r.stderr)
		}
		stillServes(t)
	})
	t.Run("port already taken", func(t *testing.T) {
		taken, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		n := taken.Addr().(*net.TCPAddr).Port
		l.refuse(8, []string{fmt.Sprint(n), "in use"}, "deploy", "-f", l.manifest("second", web("second", n)), "--image", good)
		stillServes(t)
	})
	t.Run("port of another app", func(t *testing.T) {
		l.refuse(5, []string{fmt.Sprint(port), "app"}, "deploy", "-f", l.manifest("thief", web("thief", port)), "--image", good)
		stillServes(t)
	})
	t.Run("secrets that are not there", func(t *testing.T) {
		later := l.manifest("later", web("later", freePort(t))+"secrets.api = { path = \"/run/secrets/api\" }\n")
		if r := l.pinnace("check", later); r.status != 0 {
			t.Errorf("check: %s", r)
		}
		l.refuse(5, []string{"E401", "secrets.api", "pinnace secrets put"}, "deploy", "-f", later, "--image", good)
		stillServes(t)
	})
	t.Run("archive given as an image", func(t *testing.T) {
		deploy(t, 2, "docker-archive:app.tar", "registry")
		deploy(t, 2, "oci:app", "registry")
		deploy(t, 2, "./app.tar", "registry")
	})
	t.Run("compose file given as a manifest", func(t *testing.T) {
		path := filepath.Join(l.dir, "compose.yaml")
		if err := os.WriteFile(path, []byte("services:\n  web:\n    image: nginx\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.refuse(2, []string{"compose"}, "deploy", "-f", path, "--image", good)
		stillServes(t)
	})
	t.Run("environment that does not exist", func(t *testing.T) {
		l.refuse(4, []string{"nosuch", "env create"}, "-e", "nosuch", "deploy", "-f", m, "--image", good)
	})
	t.Run("release that does not exist", func(t *testing.T) {
		l.refuse(4, []string{"rel-000000000000"}, "deploy", "rel-000000000000")
	})
	t.Run("wrong token", func(t *testing.T) {
		l.refuse(3, []string{"token"}, "--token", "wrong", "status")
	})
	t.Run("no server", func(t *testing.T) {
		l.refuse(6, []string{"pinnace dev"}, "--server", "http://"+freeAddr(t), "status")
	})
	t.Run("second deploy while one runs", func(t *testing.T) {
		slow := l.push("app", "slow", workloadImage(t, "slow", nil))
		l.must("deploy", "-f", m, "--image", slow, "--no-wait")
		l.refuse(5, []string{"dep-"}, "deploy", "-f", m, "--image", good)
	})
}

// corruptNewestLayer changes a byte of the layer blob that was pushed last.
func (l *lab) corruptNewestLayer(t *testing.T) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(l.dir, "data", "registry", "storage", "docker", "registry", "v2", "blobs", "sha256", "*", "*", "data"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("no blobs: %v", err)
	}
	newest := ""
	var when int64
	for _, b := range blobs {
		text, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(b)
		if err != nil {
			t.Fatal(err)
		}
		// A gzip layer, not a manifest or a config.
		if len(text) > 2 && text[0] == 0x1f && text[1] == 0x8b && info.ModTime().UnixNano() > when {
			newest, when = b, info.ModTime().UnixNano()
		}
	}
	b, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(newest, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// closedRegistry is the lab's registry behind a password.
func (l *lab) closedRegistry(t *testing.T) string {
	t.Helper()
	upstream, err := url.Parse("http://" + l.registry)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "user" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="closed"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// dockerLogin writes what "docker login" would.
func (l *lab) dockerLogin(t *testing.T, registry, user, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	dir := filepath.Join(l.dir, "docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, registry, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestUnfitHost starts pinnace dev where something is missing: it says what, and how to get it.
func TestUnfitHost(t *testing.T) {
	l := newLab(t)
	l.stop()
	try := func(t *testing.T, status int, words []string, change func(*exec.Cmd), flags ...string) {
		t.Helper()
		args := append([]string{
			"dev", "--data-dir", filepath.Join(l.dir, "data"), "--run-dir", filepath.Join(l.dir, "run"), "--kernels", kernels,
			"--listen", l.api, "--agent-listen", l.agents, "--registry-listen", l.registry, "--net-prefix", l.prefix, "--uplink", "none",
		}, flags...)
		cmd := exec.Command(binary, args...)
		cmd.Env = l.env
		if change != nil {
			change(cmd)
		}
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != status {
			t.Errorf("got %v, want status %d\n%s", err, status, out)
		}
		for _, w := range words {
			if !strings.Contains(string(out), w) {
				t.Errorf("the message does not say %q:\n%s", w, out)
			}
		}
	}
	t.Run("no root", func(t *testing.T) {
		try(t, 3, []string{"root", "sudo"}, asNobody(t))
	})
	t.Run("no QEMU", func(t *testing.T) {
		try(t, 2, []string{"qemu-system-x86"}, nil, "--qemu", "/nonexistent/qemu-system-x86_64")
	})
	t.Run("no kernel", func(t *testing.T) {
		try(t, 2, []string{"get-kernel.sh"}, nil, "--kernels", t.TempDir())
	})
	t.Run("kernel that is too old", func(t *testing.T) {
		dir := t.TempDir()
		old := filepath.Join(dir, "6.1.0-49-cloud-amd64")
		if err := os.CopyFS(old, os.DirFS(newestKernel(t))); err != nil {
			t.Fatal(err)
		}
		try(t, 2, []string{"6.1.0-49", "6.6"}, nil, "--kernels", dir)
	})
	t.Run("port taken", func(t *testing.T) {
		taken, err := net.Listen("tcp", l.api)
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		try(t, 5, []string{l.api, "taken"}, nil)
	})
	t.Run("doctor", func(t *testing.T) {
		r := l.pinnace("doctor", "--kernels", kernels)
		if r.status != 0 || !strings.Contains(r.stdout, "accelerator") {
			t.Errorf("a fit host: %s", r)
		}
		if strings.Contains(r.stdout, "tcg") && !strings.Contains(r.stdout, "No KVM: ") {
			t.Errorf("it does not say why there is no KVM: %s", r)
		}
		r = l.pinnace("doctor", "--kernels", t.TempDir(), "--qemu", "/nonexistent/qemu")
		if r.status != 1 || !strings.Contains(r.stdout, "get-kernel.sh") {
			t.Errorf("an unfit host: %s", r)
		}
	})
}

func newestKernel(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(kernels, "*", "vmlinuz"))
	if err != nil || len(found) == 0 {
		t.Fatal("no kernel")
	}
	return filepath.Dir(found[len(found)-1])
}
