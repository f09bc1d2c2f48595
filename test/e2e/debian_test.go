package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDebianImages runs images that were not made for Pinnace: Debian's own nginx and redis packages,
// installed on a debootstrap base and made into images with buildah.
func TestDebianImages(t *testing.T) {
	if skip != "" {
		t.Skip(skip)
	}
	for _, tool := range []string{"debootstrap", "buildah"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: apt-get install %s", tool, tool)
		}
	}
	l := newLab(t)
	base := l.debian(t, "nginx-light", "redis-server")

	port := freePort(t)
	ref := l.buildah(t, base, "nginx", `FROM base
COPY index.html /var/www/html/index.html
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
`)
	l.must("deploy", "--image", ref, "-f", l.manifest("nginx", fmt.Sprintf(`schema = "v1"
name = "nginx"
resources = { memory = "192MiB", disk = "128MiB" }
ports.http = { port = 80, expose = "public", edge = "raw", public_port = %d }
health.ready = { type = "http", port = "http", interval = "1s", timeout = "1s" }
rollout = { hold = "1s" }
`, port)))
	if got := l.get(port, "/"); got != "served by Debian's nginx" {
		t.Errorf("nginx: got %q", got)
	}
	ignored := l.must("init", "--image", ref, "-f", filepath.Join(l.dir, "new.toml"))
	if !strings.Contains(ignored, "EXPOSE 80") {
		t.Errorf("init --image does not say that EXPOSE is ignored: %q", ignored)
	}

	port = freePort(t)
	ref = l.buildah(t, base, "redis", `FROM base
USER redis
WORKDIR /var/lib/redis
CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"]
`)
	l.must("deploy", "--image", ref, "-f", l.manifest("redis", fmt.Sprintf(`schema = "v1"
name = "redis"
resources = { memory = "192MiB", disk = "128MiB" }
ports.redis = { port = 6379, expose = "public", edge = "raw", public_port = %d }
health.ready = { type = "exec", command = ["redis-cli", "ping"], interval = "2s", timeout = "2s" }
rollout = { hold = "1s" }
`, port)))
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "SET key value\r\nGET key\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	var answer []string
	for range 3 {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		answer = append(answer, strings.TrimSpace(line))
	}
	if got := strings.Join(answer, " "); got != "+OK $5 value" {
		t.Errorf("redis: got %q", got)
	}
}

// debian makes a base system with packages and returns its folder. PINNACE_DEBIAN names one that has them already.
func (l *lab) debian(t *testing.T, packages ...string) string {
	t.Helper()
	if root := os.Getenv("PINNACE_DEBIAN"); root != "" {
		return root
	}
	site, err := exec.Command("sh", "-c",
		`apt-get indextargets --format '$(SITE) $(CODENAME)' 'Created-By: Packages' | awk -v c="$(. /etc/os-release; echo $VERSION_CODENAME)" '$2 == c { print $1, $2; exit }'`).Output()
	fields := strings.Fields(string(site))
	if err != nil || len(fields) != 2 {
		t.Skip("needs a Debian mirror: apt-get update")
	}
	root := filepath.Join(l.dir, "debian")
	cmd := exec.Command("debootstrap", "--variant=minbase", "--include="+strings.Join(packages, ","), fields[1], root, fields[0])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, tail(string(out)))
	}
	return root
}

// buildah builds an image on the base and pushes it.
func (l *lab) buildah(t *testing.T, base, name, dockerfile string) string {
	t.Helper()
	if images := l.runBuildah(t, "images", "--quiet", "--filter", "reference=localhost/base"); images == "" {
		// An archive keeps who owns what; a folder that is copied would become root's.
		archive := base + ".tar"
		if out, err := exec.Command("tar", "-C", base, "-cf", archive, ".").CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, tail(string(out)))
		}
		container := l.runBuildah(t, "from", "scratch")
		l.runBuildah(t, "add", "--quiet", container, archive, "/")
		l.runBuildah(t, "commit", "--quiet", container, "base")
	}
	return l.buildahBuild(t, name, dockerfile)
}

// buildahBuild builds an image from what is in the folder build-NAME, and pushes it.
func (l *lab) buildahBuild(t *testing.T, name, dockerfile string) string {
	t.Helper()
	context := filepath.Join(l.dir, "build-"+name)
	if err := os.MkdirAll(context, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	// It is for nginx; the build of others ignores it.
	if err := os.WriteFile(filepath.Join(context, "index.html"), []byte("served by Debian's nginx\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.runBuildah(t, "build", "--quiet", "--layers", "--tag", name, context)
	ref := l.registry + "/" + name + ":debian"
	l.runBuildah(t, "push", "--quiet", "--tls-verify=false", name, "docker://"+ref)
	return ref
}

func (l *lab) runBuildah(t *testing.T, args ...string) string {
	t.Helper()
	storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(l.dir, "storage"), "--runroot", filepath.Join(l.dir, "storage-run")}
	cmd := exec.Command("../../scripts/with-own-root.sh", append(append([]string{"buildah"}, storage...), args...)...)
	cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot", "TMPDIR="+l.dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("buildah %v: %v\n%s", args, err, tail(stderr.String()))
	}
	return strings.TrimSpace(string(out))
}

func tail(s string) string {
	return s[max(0, len(s)-2000):]
}
