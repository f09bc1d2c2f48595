package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestWorkloads runs servers as people have them: Debian's own packages, made into images with buildah. It takes minutes,
// so that only PINNACE_WORKLOADS=1 asks for it.
func TestWorkloads(t *testing.T) {
	if os.Getenv("PINNACE_WORKLOADS") != "1" {
		t.Skip("installs and boots large images: make workloads")
	}
	needBuildah(t)
	l := newLab(t)
	base := l.debian(t, "nginx-light", "python3", "nodejs")
	t.Run("nginx", func(t *testing.T) { l.with(t).testNginx(t, base) })
	t.Run("node", func(t *testing.T) {
		l.with(t).testScript(t, base, "node", `require("http").createServer((q, s) => s.end(JSON.stringify({uid: process.getuid(), pid: process.pid}))).listen(8000)`,
			`["nodejs", "/srv/server"]`, `{"uid":33,"pid":`)
	})
	t.Run("python", func(t *testing.T) {
		l.with(t).testScript(t, base, "python", `
import http.server, os, signal, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"uid":%d}' % os.getuid())
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
http.server.HTTPServer(("", 8000), H).serve_forever()
`, `["python3", "/srv/server"]`, `{"uid":33}`)
	})
	t.Run("static Go program from scratch", func(t *testing.T) { l.with(t).testScratch(t) })
}

func needBuildah(t *testing.T) {
	t.Helper()
	if skip != "" {
		t.Skip(skip)
	}
	for _, tool := range []string{"debootstrap", "buildah"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: apt-get install %s", tool, tool)
		}
	}
}

// server is the manifest of a server that is asked on a public port.
func server(name string, inside, public int) string {
	return fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "256MiB", disk = "128MiB" }
ports.http = { port = %d, expose = "public", edge = "raw", public_port = %d }
health.ready = { type = "http", port = "http", interval = "2s", timeout = "2s" }
rollout = { hold = "1s", boot_timeout = "5m" }
stop = { drain = "0s", timeout = "20s" }
`, name, inside, public)
}

// wantEnd stops an app and checks how its one instance ended.
func (l *lab) wantEnd(t *testing.T, app, kind string, code int) {
	t.Helper()
	l.must("stop", app)
	for _, i := range l.instances("--all") {
		if i.App != app {
			continue
		}
		if e := i.LastEnd; e == nil || e.Kind != kind || e.Code != code || !e.Planned || i.Attempt != 1 {
			t.Errorf("%s: %+v in attempt %d, want %s with code %d", app, e, i.Attempt, kind, code)
		}
		t.Log(l.must("why", i.ID))
	}
}

// testNginx has a master that is root and workers of another user, which a stop ends with status 0.
func (l *lab) testNginx(t *testing.T, base string) {
	port := freePort(t)
	ref := l.buildah(t, base, "nginx", `FROM base
COPY index.html /var/www/html/index.html
RUN ln -sf /dev/stdout /var/log/nginx/access.log && ln -sf /dev/stderr /var/log/nginx/error.log
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
`)
	l.must("deploy", "--image", ref, "-f", l.manifest("nginx", server("nginx", 80, port)))
	if got := l.get(port, "/?first"); got != "served by Debian's nginx" {
		t.Errorf("got %q", got)
	}
	l.awaitOutput("nginx", "GET /?first") // the log of its workers, which may open root's output
	l.wantEnd(t, "nginx", "exited", 0)
}

// testScript has a server in a language with a runtime, as the user of Debian's web servers.
func (l *lab) testScript(t *testing.T, base, name, program, command, want string) {
	port := freePort(t)
	context := filepath.Join(l.dir, "build-"+name)
	if err := os.MkdirAll(context, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(context, "server"), []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	ref := l.buildah(t, base, name, "FROM base\nCOPY server /srv/server\nUSER www-data\nCMD "+command+"\n")
	l.must("deploy", "--image", ref, "-f", l.manifest(name, server(name, 8000, port)))
	if got := l.get(port, "/"); !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if name == "node" { // which has no handler: the kernel lets nobody's signals kill process 1 only
		l.wantEnd(t, name, "signalled", 143)
		return
	}
	l.wantEnd(t, name, "exited", 0)
}

// testScratch has an image of one file, made by buildah.
func (l *lab) testScratch(t *testing.T) {
	context := filepath.Join(l.dir, "build-scratch")
	if err := os.MkdirAll(context, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(vmtest.Build(t, "./workload"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(context, "server"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	ref := l.buildahBuild(t, "scratch", "FROM scratch\nCOPY server /server\nENV VERSION=scratch\nENTRYPOINT [\"/server\"]\n")
	l.must("deploy", "--image", ref, "-f", l.manifest("scratch", server("scratch", 8080, port)))
	if got := l.get(port, "/"); got != "version scratch" {
		t.Errorf("got %q", got)
	}
	l.wantEnd(t, "scratch", "exited", 0)
}
