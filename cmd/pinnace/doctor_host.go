package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// Below these a host is of little use.
const (
	leastDisk   = 2 << 30
	leastMemory = 256 << 20
)

// A hostView is how doctor sees the host.
type hostView struct {
	euid                    int
	tun, mountinfo, meminfo string // files
	lookPath                func(name string) (string, error)
	pidfd                   func() error
	network                 func(ctx context.Context, dir string) error
	freeBytes               func(dir string) (int64, error)
	clones                  func(dir string) (bool, error) // whether the file system shares blocks between files
}

func thisHost() hostView {
	return hostView{
		euid: os.Geteuid(), tun: "/dev/net/tun", mountinfo: "/proc/self/mountinfo", meminfo: "/proc/meminfo",
		lookPath: exec.LookPath, pidfd: openOwnPidfd, network: network.Probe, freeBytes: freeBytes, clones: canClone,
	}
}

func (h hostView) examineUser() finding {
	if h.euid == 0 {
		return good("user", "root")
	}
	return bad("user", "not root: the agent makes network namespaces, tap devices and a user for each microVM", "run the agent, pinnace dev and this with sudo")
}

func (h hostView) examineTun() finding {
	f, err := os.OpenFile(h.tun, os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close()
		return good("tun", h.tun+" opens")
	case errors.Is(err, fs.ErrNotExist):
		return bad("tun", err.Error(), "modprobe tun")
	}
	return bad("tun", err.Error(), "run this with sudo, outside of containers that keep devices away")
}

func (h hostView) examineProgram(name, what, fix string) finding {
	path, err := h.lookPath(name)
	if err != nil {
		path, err = h.lookPath(filepath.Join("/sbin", name))
	}
	if err != nil {
		return bad(name, "not found; it "+what, fix)
	}
	return good(name, path)
}

// examineCgroups says what of a microVM can be bounded here.
func (h hostView) examineCgroups() finding {
	found, err := cgroup.FindIn(h.mountinfo)
	if err != nil {
		return note("cgroups", fmt.Sprintf("microVMs run without a bound on their monitors' memory: %v", err), "boot the host with cgroup version 2 (systemd.unified_cgroup_hierarchy=1)")
	}
	var has []string
	for _, c := range cgroup.Controllers() {
		if !slices.Contains(found.Missing(), c) {
			has = append(has, string(c))
		}
	}
	detail := fmt.Sprintf("version %d, with %s", found.Version, strings.Join(has, ", "))
	if weakness := found.Weakness(); weakness != "" {
		return note("cgroups", detail+"; "+weakness, "mount the missing controllers, or boot the host with cgroup version 2")
	}
	return good("cgroups", detail)
}

// examineNetwork makes a network.
func (h hostView) examineNetwork(ctx context.Context, dir string) finding {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return bad("network", err.Error(), "")
	}
	if err := h.network(ctx, dir); err != nil {
		return bad("network", "a network like those of environments cannot be made: "+err.Error(),
			"modprobe -a bridge veth tun nf_tables nft_masq; the host's kernel needs network namespaces and nftables")
	}
	return good("network", "namespaces, bridges, tap devices and nftables work")
}

// examineOutliving says whether microVMs can outlive the agent here, and what else that takes.
func (h hostView) examineOutliving() finding {
	if err := h.pidfd(); err != nil {
		return bad("outliving", fmt.Sprintf("microVMs cannot be taken over by the next agent: open a pidfd: %v", err), "use Linux 5.10 or later")
	}
	return good("outliving", "microVMs outlive the agent; a service manager has to end the agent's process alone (systemd: KillMode=process)")
}

func openOwnPidfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (h hostView) examineMemory() finding {
	total, available, err := memory(h.meminfo)
	detail := fmt.Sprintf("%s, %s of it available", byteSize(total), byteSize(available))
	switch {
	case err != nil:
		return bad("memory", err.Error(), "mount /proc")
	case available < leastMemory:
		return bad("memory", detail, fmt.Sprintf("free some: a microVM takes %s and more", byteSize(leastMemory)))
	}
	return good("memory", detail)
}

// memory reads MemTotal and MemAvailable, in bytes.
func memory(meminfo string) (total, available int64, err error) {
	b, err := os.ReadFile(meminfo)
	if err != nil {
		return 0, 0, err
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 54)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", meminfo, err)
		}
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("%s has no MemTotal", meminfo)
	}
	return total, available, nil
}

// examineDisk looks at the file system of the data directory, which may not be there yet.
func (h hostView) examineDisk(data string) []finding {
	dir := existing(data)
	free, err := h.freeBytes(dir)
	if err != nil {
		return []finding{bad("disk", err.Error(), "name another directory with --data-dir")}
	}
	room := good("disk", fmt.Sprintf("%s free in %s", byteSize(free), dir))
	if free < leastDisk {
		room = bad("disk", room.Detail, fmt.Sprintf("make room, or name another directory with --data-dir: images and scratch disks need %s and more", byteSize(leastDisk)))
	}
	shares := finding{Name: "reflink", OK: true, Detail: "copies of disks share their blocks"}
	if can, err := h.clones(dir); err != nil {
		shares = note("reflink", "not known: "+err.Error(), "")
	} else if !can {
		shares = note("reflink", "the file system of "+dir+" cannot share blocks between files: scratch disks are copied sparsely, snapshots of volumes in full",
			"put the data directory on XFS or btrfs")
	}
	return []finding{room, shares}
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// canClone tries it with two files that have no names.
func canClone(dir string) (bool, error) {
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer func() { _ = f.Close() }()
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return false, err
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) == nil, nil
}
