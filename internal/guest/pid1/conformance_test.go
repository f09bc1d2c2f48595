//go:build linux

package pid1_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// rule is one thing that an image may rely on in a container, and where Docker says so. The rules that need no kernel
// (users, commands, environment, exit codes) have tables of their own: TestResolveUser, TestLookUp, TestEnvironment,
// TestStartError, and TestProcess of the agent for Entrypoint, Cmd and what overrides them.
type rule struct {
	fact, want string // … at the end stands for anything
	source     string
}

// Sources of the rules.
const (
	ociLinux   = "OCI runtime spec, config-linux.md: default file systems and devices"
	mobySpec   = "moby, oci/defaults.go: mounts, masked and read-only paths, capabilities, sysctls"
	dockerRun  = "docs.docker.com, docker container run"
	dockerfile = "docs.docker.com, Dockerfile reference"
	ours       = "this project: the VM's limits are the workload's"
)

// containerRules are those for a workload that is root in an image with no other wishes.
var containerRules = []rule{
	{"dev", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero", ociLinux},
	{"link /dev/fd", "/proc/self/fd", ociLinux},
	{"link /dev/stdin", "/proc/self/fd/0", ociLinux},
	{"link /dev/stdout", "/proc/self/fd/1", ociLinux},
	{"link /dev/stderr", "/proc/self/fd/2", ociLinux},
	{"link /dev/ptmx", "pts/ptmx", ociLinux},
	{"node /dev/null", "1:3 0666", ociLinux},
	{"node /dev/zero", "1:5 0666", ociLinux},
	{"node /dev/full", "1:7 0666", ociLinux},
	{"node /dev/random", "1:8 0666", ociLinux},
	{"node /dev/urandom", "1:9 0666", ociLinux},
	{"node /dev/tty", "5:0 0666", ociLinux},
	{"node /dev/ptmx", "5:2 0666", ociLinux},
	{"read /dev/tty", "open /dev/tty: no such device or address", dockerRun + ": without -t there is no terminal"},
	{"open /dev/ptmx", "done", ociLinux},
	{"write /dev/null", "done", ociLinux},
	{"write /dev/full", "write /dev/full: no space left on device", ociLinux},
	{"mount /dev", "tmpfs rw,nosuid,nodev,noexec,relatime,size=64k,mode=755,inode64", mobySpec},
	{"mount /dev/pts", "devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666", mobySpec},
	{"mount /dev/shm", "tmpfs rw,nosuid,nodev,noexec,relatime,inode64", mobySpec},
	{"mount /dev/mqueue", "mqueue rw,nosuid,nodev,noexec,relatime", mobySpec},
	{"mount /proc", "proc rw,nosuid,nodev,noexec,relatime", mobySpec},
	{"mount /sys", "sysfs ro,nosuid,nodev,noexec,relatime", mobySpec},
	{"mount /sys/fs/cgroup", "cgroup2 ro,nosuid,nodev,noexec,relatime,nsdelegate,memory_recursiveprot", mobySpec},

	{"use a disk by /dev", "open /dev/disk: permission denied", mobySpec + ": devices that are not listed open nothing"},
	{"use a disk by /dev/shm", "open /dev/shm/disk: permission denied", mobySpec},
	{"use a disk by /tmp", "open /tmp/disk: permission denied", mobySpec},
	{"use a disk by /", "open /disk: permission denied", mobySpec},

	{"write /proc/sys/kernel/core_pattern", "open /proc/sys/kernel/core_pattern: read-only file system", mobySpec},
	{"write /proc/sys/net/ipv4/ip_forward", "open /proc/sys/net/ipv4/ip_forward: read-only file system", mobySpec},
	{"write /proc/sys/vm/panic_on_oom", "open /proc/sys/vm/panic_on_oom: read-only file system", mobySpec},
	{"write /proc/sysrq-trigger", "open /proc/sysrq-trigger: read-only file system", mobySpec},
	{"write /proc/irq/default_smp_affinity", "open /proc/irq/default_smp_affinity: read-only file system", mobySpec},
	{"write /sys/fs/cgroup/cgroup.procs", "open /sys/fs/cgroup/cgroup.procs: read-only file system", mobySpec},
	{"write /sys/fs/cgroup/workload/memory.max", "open /sys/fs/cgroup/workload/memory.max: read-only file system", mobySpec},
	{"write /sys/fs/cgroup/init/cgroup.procs", "open /sys/fs/cgroup/init/cgroup.procs: read-only file system", mobySpec},
	{"write /sys/kernel/mm/transparent_hugepage/enabled", "open /sys/kernel/mm/transparent_hugepage/enabled: read-only file system", mobySpec},
	{"read /proc/kcore", "0 bytes done", mobySpec},
	{"read /proc/keys", "0 bytes done", mobySpec},
	{"read /proc/timer_list", "0 bytes done", mobySpec},
	{"read /proc/interrupts", "0 bytes done", mobySpec},
	{"list /proc/acpi", "0", mobySpec},
	{"list /sys/firmware", "0", mobySpec},

	{"mount", "operation not permitted", mobySpec + ": no CAP_SYS_ADMIN"},
	{"set hostname", "operation not permitted", mobySpec + ": no CAP_SYS_ADMIN"},
	{"set clock", "operation not permitted", mobySpec + ": no CAP_SYS_TIME"},
	{"load module", "operation not permitted", mobySpec + ": no CAP_SYS_MODULE"},
	{"reboot", "operation not permitted", mobySpec + ": no CAP_SYS_BOOT"},
	{"read /proc/1/environ", "open /proc/1/environ: permission denied", ours},
	{"read /proc/1/root", "readlink /proc/1/root: permission denied", ours},
	{"raw socket", "done", mobySpec + ": CAP_NET_RAW"},
	{"bind port 80", "done", mobySpec + ": CAP_NET_BIND_SERVICE, and ip_unprivileged_port_start=0"},
	{"ping socket", "done", mobySpec + ": ping_group_range"},
	{"chown", "done", mobySpec + ": CAP_CHOWN"},

	{"cgroup memory.oom.group", "1", ours},
	{"cgroup of init", "0::/init", ours},
	{"limit open files", "1048576 1048576", mobySpec},
	{"limit processes", "unlimited unlimited", mobySpec},
	{"limit core file size", "0 unlimited", ours + ": a dump may hold secrets"},

	{"fd 0", "/dev/null", dockerRun + ": without -i"},
	{"fds", "0 1 2", ours + ": nothing of PID 1's is left open"},
	{"leads its session", "true", ours},

	{"place of /etc/hosts", "127.0.0.1\tlocalhost\n…", dockerRun + ": made by the engine; the link leads to a directory of mode 0555, and never out of the image"},
	{"place of /etc/hostname", "web-1\n", dockerRun + ": the link was a circle"},
	{"place of /etc/resolv.conf", "search internal\nnameserver 10.100.0.1\n", dockerRun + ": the link led nowhere"},
	{"append to /etc/hosts", "done", dockerRun},
	{"append to /etc/hostname", "done", dockerRun},
	{"append to /etc/resolv.conf", "done", dockerRun},
}

// testContainer holds a VM's workload against all of containerRules at once.
func testContainer(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("place"))
	if e := m.exit(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	m.end()
	f := m.facts()
	for _, r := range containerRules {
		got := f.text(r.fact)
		begin, open := strings.CutSuffix(r.want, "…")
		if got != r.want && (!open || !strings.HasPrefix(got, begin)) {
			t.Errorf("%s: got %q, want %q (%s)", r.fact, got, r.want, r.source)
		}
	}
	for _, limit := range []string{"cgroup memory.max", "cgroup pids.max"} {
		if n, err := strconv.ParseInt(f.text(limit), 10, 64); err != nil || n <= 0 {
			t.Errorf("%s is %q", limit, f.text(limit))
		}
	}
}

// imageRules are processes of images, each run in a VM of its own, and what they have to find.
var imageRules = []struct {
	name    string
	process guest.Process
	want    []rule
}{
	{
		"name with a group, command by PATH, working directory that is there",
		guest.Process{
			Cmd: []string{"workload", "facts"}, User: "web:media", WorkDir: "/etc/dir",
			Env: []string{"PATH=/nowhere:/bin", "HOME=/elsewhere", "LANG=C"},
		},
		[]rule{
			{"uid", "1000", dockerfile + ", USER"},
			{"gid", "2001", dockerfile + ", USER"},
			{"groups", "[2001]", dockerfile + ", USER: a given group is the only one"},
			{"cwd", "/etc/dir", dockerfile + ", WORKDIR"},
			{"args", "[workload facts]", dockerfile + ", CMD: argv[0] stays as it was written"},
			{"env", "[PATH=/nowhere:/bin HOSTNAME=web-1 HOME=/elsewhere LANG=C]", dockerfile + ", ENV"},
			{"CapEff", "0000000000000000", mobySpec},
			{"CapPrm", "0000000000000000", mobySpec},
			{"CapAmb", "0000000000000000", mobySpec},
			{"CapBnd", "00000000a80425fb", mobySpec},
			{"NoNewPrivs", "0", dockerRun + ": only with --security-opt no-new-privileges"},
			{"umask", "0022", ociLinux},
		},
	},
	{
		"number that no file knows, entrypoint with command, relative path, working directory through a link",
		guest.Process{
			Entrypoint: []string{"../../bin/workload", "facts"}, Cmd: []string{"from", "cmd"}, User: "4242",
			WorkDir: "/run/app/../../srv/new",
		},
		[]rule{
			{"uid", "4242", dockerfile + ", USER"},
			{"gid", "0", dockerfile + ", USER: no primary group means root's"},
			{"groups", "[0]", dockerfile + ", USER"},
			{"cwd", "/srv/new", dockerfile + ", WORKDIR: made when it is not there"},
			{"env", "[PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOSTNAME=web-1 HOME=/]", dockerfile + ", ENV"},
			{"args", "[../../bin/workload facts from cmd]", dockerfile + ", ENTRYPOINT: arguments of CMD follow"},
			{"mode /dev/shm", "dtrwxrwxrwx", mobySpec},
			{"mode /tmp", "dtrwxrwxrwx", ours},
			{"reopen stderr", "true", ours + ": programs log to /dev/stderr"},
		},
	},
}

func testImageRules(t *testing.T, l *lab) {
	for _, image := range imageRules {
		t.Run(image.name, func(t *testing.T) {
			m := l.boot(t)
			c := l.config()
			c.Process = image.process
			m.start(c)
			if e := m.exit(); e.Code != 0 {
				t.Errorf("exit %+v", e)
			}
			m.end()
			f := m.facts()
			for _, r := range image.want {
				if got := f.text(r.fact); got != r.want {
					t.Errorf("%s: got %q, want %q (%s)", r.fact, got, r.want, r.source)
				}
			}
		})
	}
}
