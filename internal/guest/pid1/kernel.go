//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// moduleList names the modules of the initramfs in loading order, one "PHASE FILE" a line. Those of the phase "early"
// are needed to talk to the host; the "late" ones are loaded while the host makes up its mind; those for a device that
// not every VMM has, only where there is one.
const moduleList = "/lib/modules/load"

// Virtio devices that have modules of their own in the list.
const (
	virtioRNG   = 4
	virtioVsock = 19
)

// MountKernelFilesystems mounts /dev, /proc and /sys in the initramfs.
func (b *Boot) MountKernelFilesystems() error {
	for _, m := range []struct {
		target, kind string
		flags        uintptr
		data         string
	}{
		{"/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	} {
		if err := makeDir(m.target); err != nil {
			return err
		}
		// EBUSY: the kernel mounted it itself (CONFIG_DEVTMPFS_MOUNT).
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	fd, err := unix.Open("/dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev: %w", err)
	}
	b.devices = fd
	// Without the kernel's log a boot is harder to look into, and nothing else.
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		kernelLog.Store(f)
	}
	return nil
}

// LoadEarlyModules loads what the channels to the host need.
func (b *Boot) LoadEarlyModules() error {
	if err := loadModules(moduleList, "early"); err != nil {
		return err
	}
	if hasDevice(virtioDevices, virtioVsock) {
		return loadModules(moduleList, "vsock")
	}
	return nil
}

// LoadLateModules loads the rest.
func (b *Boot) LoadLateModules() error {
	if err := loadModules(moduleList, "late"); err != nil {
		return err
	}
	if hasDevice(virtioDevices, virtioRNG) {
		return loadModules(moduleList, "rng")
	}
	return nil
}

const virtioDevices = "/sys/bus/virtio/devices"

// hasDevice tells whether the VM has a virtio device of that kind.
func hasDevice(bus string, kind uint64) bool {
	files, err := filepath.Glob(filepath.Join(bus, "*", "device"))
	if err != nil {
		return false
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if got, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, 16); err == nil && got == kind {
			return true
		}
	}
	return false
}

func loadModules(list, when string) error {
	src, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // everything is built in
	}
	if err != nil {
		return err
	}
	for _, file := range modulesOf(string(src), when) {
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(list), file)
		}
		if err := loadModule(file); err != nil {
			return err
		}
	}
	return nil
}

func modulesOf(list, when string) []string {
	var files []string
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == when {
			files = append(files, f[1])
		}
	}
	return files
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(file), err)
	}
	return nil
}

// sysctls that a workload expects. Those that a kernel doesn't have are skipped.
var sysctls = []struct{ name, value string }{
	{"net/ipv4/ip_unprivileged_port_start", "0"}, // as in Docker: an unprivileged server may listen on port 80
	{"net/ipv4/ping_group_range", "0 2147483647"},
	{"net/ipv6/conf/all/accept_ra", "0"}, // addresses and routes come from the configuration only
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"vm/max_map_count", "262144"}, // search engines refuse to start below
	{"kernel/dmesg_restrict", "1"},
	{"kernel/kptr_restrict", "1"},
	{"kernel/core_pattern", "core"},
	// A kernel's own values are for a machine without a service manager, which would set these.
	{"fs/protected_hardlinks", "1"},
	{"fs/protected_symlinks", "1"},
	{"kernel/sysrq", "0"},
}

// defaultNoFile is the limit of open files, as Docker sets it.
const defaultNoFile = 1 << 20

// SetKernelKnobs sets host name, limits and sysctls. PID 1's limits are those of its children.
//
// oom_score_adj stays alone: the kernel never picks PID 1, and children would inherit a value set here.
func (b *Boot) SetKernelKnobs() error {
	if err := unix.Sethostname([]byte(b.config.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", b.config.Hostname, err)
	}
	// From now on Ctrl-Alt-Del of the VMM is SIGINT to PID 1 instead of a reset.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("take over ctrl-alt-del: %w", err)
	}
	for _, s := range sysctls {
		if err := os.WriteFile("/proc/sys/"+s.name, []byte(s.value), 0); err != nil {
			logf(logInfo, "set %s: %v", s.name, err)
		}
	}
	files := b.config.Limits.NoFile
	if files == 0 {
		files = defaultNoFile
	}
	// A dump may hold secrets, and would lie on the scratch disk. A workload without any may ask for one.
	mostCore := uint64(math.MaxUint64)
	if len(b.config.Secrets) > 0 {
		mostCore = 0
	}
	// PID 1 has them all in its memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep PID 1's memory from others: %w", err)
	}
	for _, l := range []struct {
		resource int
		name     string
		soft     uint64
		hard     uint64
	}{
		{unix.RLIMIT_NOFILE, "open files", files, files},
		{unix.RLIMIT_NPROC, "processes", math.MaxUint64, math.MaxUint64}, // the cgroup's pids.max is the limit
		{unix.RLIMIT_CORE, "core files", 0, mostCore},
	} {
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}); err != nil {
			return fmt.Errorf("limit %s to %d: %w", l.name, l.soft, err)
		}
	}
	return nil
}

// SetClock sets the time and seeds the random numbers with what came from the host.
func (b *Boot) SetClock() error {
	if b.config.Now != 0 {
		if _, err := followClock(b.config.Now, b.configAt); err != nil {
			return err
		}
	}
	return addEntropy(b.config.Entropy)
}

// addEntropy credits seed to the kernel's random number generator (struct rand_pool_info of random(4)).
func addEntropy(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var pool struct {
		bits, size int32
		data       [64]byte
	}
	n := copy(pool.data[:], seed)
	pool.bits, pool.size = int32(8*n), int32(n)
	if err := ioctl(int(f.Fd()), unix.RNDADDENTROPY, unsafe.Pointer(&pool)); err != nil { //nolint:gosec // struct rand_pool_info
		return fmt.Errorf("seed random numbers: %w", err)
	}
	return nil
}

// memTotal is the memory of the VM that the kernel has to give, in bytes; 0 when it doesn't say.
func memTotal() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
