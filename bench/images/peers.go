package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A tool gets an image from the registry in its own way.
type tool struct {
	name  string
	needs []string // programs in the peers' root
	// get makes the image usable and measures that. dir is empty, or what an earlier call left.
	get func(b *bench, ctx context.Context, g *group, dir, ref string) (cost, error)
}

var tools = []tool{
	{name: "pinnace", get: (*bench).pinnace},
	{name: "podman", needs: []string{"podman"}, get: (*bench).podman},
	{name: "skopeo + umoci", needs: []string{"skopeo", "umoci"}, get: (*bench).umoci},
	{name: "containerd overlayfs", needs: []string{"containerd", "ctr"}, get: (*bench).containerdOverlay},
	{name: "containerd erofs", needs: []string{"containerd", "ctr", "mkfs.erofs"}, get: (*bench).containerdErofs},
	{name: "mkfs.erofs --oci", needs: []string{"mkfs.erofs"}, get: (*bench).mkfsOCI},
}

// missing says what a tool needs that is not there.
func (b *bench) missing(t tool) string {
	var list []string
	for _, program := range t.needs {
		if _, err := os.Stat(filepath.Join(b.root, "usr/bin", program)); err != nil {
			list = append(list, program)
		}
	}
	return strings.Join(list, ", ")
}

// inside is the command line that runs one in the peers' root, with what a program expects of a system, and the
// working directory at /work. Mounts are gone when it ends.
func (b *bench) inside(args ...string) []string {
	script := `set -e
mkdir -p "$0/work"
mount --bind "$1" "$0/work"
for d in proc sys dev; do mount --rbind /$d "$0/$d"; done
mount -t tmpfs tmpfs "$0/run"
mount -t tmpfs tmpfs "$0/tmp"
root=$0; shift; exec chroot "$root" "$@"`
	return append([]string{"unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script, b.root, b.work}, args...)
}

// at is where a path of the working directory is inside.
func (b *bench) at(path string) string {
	return "/work/" + strings.TrimPrefix(strings.TrimPrefix(path, b.work), "/")
}

func (b *bench) pinnace(ctx context.Context, g *group, dir, ref string) (cost, error) {
	self, err := os.Executable()
	if err != nil {
		return cost{}, err
	}
	c, err := g.measure(ctx, self, "-pull", dir, ref)
	if err != nil || !b.lookups {
		return c, err
	}
	// In a process of its own, which is not part of what was measured.
	again, err := g.command(ctx, self, "-pull", dir, "-again", "21", ref).Output()
	c.output = append(c.output, again...)
	return c, err
}

func (b *bench) podman(ctx context.Context, g *group, dir, ref string) (cost, error) {
	return g.measure(ctx, b.inside("podman", "--root", b.at(dir)+"/root", "--runroot", b.at(dir)+"/run", "--storage-driver", "overlay",
		"pull", "--quiet", "--tls-verify=false", "docker://"+ref)...)
}

func (b *bench) umoci(ctx context.Context, g *group, dir, ref string) (cost, error) {
	layout := b.at(dir) + "/oci:bench"
	return g.measure(ctx, b.inside("/bin/sh", "-ec", fmt.Sprintf(
		"skopeo copy --quiet --src-tls-verify=false docker://%s oci:%s\numoci unpack --image %s %s/bundle", ref, layout, layout, b.at(dir)))...)
}

func (b *bench) containerdOverlay(ctx context.Context, g *group, dir, ref string) (cost, error) {
	return b.containerd(ctx, g, dir, ref, "overlayfs", "walking")
}

func (b *bench) containerdErofs(ctx context.Context, g *group, dir, ref string) (cost, error) {
	return b.containerd(ctx, g, dir, ref, "erofs", "erofs', 'walking")
}

// containerd starts a daemon with nothing in its directories, and counts what it and its client take from the
// client's start on.
func (b *bench) containerd(ctx context.Context, g *group, dir, ref, snapshotter, differ string) (c cost, err error) {
	inside := b.at(dir)
	config := fmt.Sprintf(`version = 3
root = '%s/root'
state = '%s/state'
[grpc]
address = '%s/containerd.sock'
[plugins.'io.containerd.service.v1.diff-service']
default = ['%s']
`, inside, inside, inside, differ)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		return cost{}, err
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return cost{}, err
	}
	defer logFile.Close()
	daemon := g.command(ctx, b.inside("containerd", "--config", inside+"/config.toml", "--log-level", "warn")...)
	daemon.Stdout, daemon.Stderr = logFile, logFile
	daemon.Cancel = func() error { return daemon.Process.Signal(syscall.SIGTERM) }
	if err := daemon.Start(); err != nil {
		return cost{}, err
	}
	defer func() {
		if stopErr := daemon.Process.Signal(syscall.SIGTERM); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
		_ = daemon.Wait() // it was told to end
		if err != nil {
			said, _ := os.ReadFile(logFile.Name())
			err = fmt.Errorf("%w (daemon: %s)", err, lastLines(string(said)))
		}
	}()
	for deadline := time.Now().Add(30 * time.Second); ; {
		conn, err := net.Dial("unix", filepath.Join(dir, "containerd.sock"))
		if err == nil {
			_ = conn.Close() // it is there, which is all there was to know
			break
		}
		if time.Now().After(deadline) {
			return cost{}, fmt.Errorf("containerd did not start: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return g.measure(ctx, b.inside("ctr", "--address", inside+"/containerd.sock", "--namespace", "bench",
		"image", "pull", "--local", "--plain-http", "--snapshotter", snapshotter, ref)...)
}

func (b *bench) mkfsOCI(ctx context.Context, g *group, dir, ref string) (cost, error) {
	return g.measure(ctx, b.inside("mkfs.erofs", "--quiet", "--oci=f,insecure", b.at(dir)+"/image.erofs", ref)...)
}

// startRegistry runs Debian's registry on loopback.
func (b *bench) startRegistry(ctx context.Context) (stop func(), err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	b.registry = fmt.Sprintf("127.0.0.1:%d", port)
	config := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /work/registry}}
http: {addr: %q}
`, b.registry)
	if err := os.WriteFile(filepath.Join(b.work, "registry.yml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	args := b.inside("docker-registry", "serve", "/work/registry.yml")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	said, err := os.Create(filepath.Join(b.work, "registry.log")) // it complains of every blob that it is asked for and has not yet
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start docker-registry: %w", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		conn, err := net.Dial("tcp", b.registry)
		if err == nil {
			_ = conn.Close() // it is there, which is all there was to know
			break
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("docker-registry did not start: %w", err), cmd.Process.Kill(), cmd.Wait())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return func() {
		_ = cmd.Process.Kill() // what it has is thrown away
		_ = cmd.Wait()
	}, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
