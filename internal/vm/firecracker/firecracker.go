// Package firecracker runs machines with Firecracker, each in a jail that Firecracker's own jailer builds. It
// needs KVM and root, and has no emulation to fall back to.
//
// A monitor has its own uid, its own root directory with hard links to the kernel, the initramfs and the disks of
// its machine, and the network namespace of its machine. The package tells it what to run over its API socket
// before the guest executes anything, and never speaks to it again: a machine is stopped through the guest's own
// protocol, or killed. Console, log and metrics come out of FIFOs, so that no guest can fill the host's disk.
//
// The guest connects to the host over vsock, once for each channel; see ports. The kernel has to be an
// uncompressed ELF file on amd64.
//
// Monitors outlive the process that started them, in the hands of a holder (package holder), and another process
// adopts them by their record. What nobody adopts is ended with vm.Record.End, and what is left of jails is removed with
// Driver.Sweep.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// Defaults of Options.
const (
	DefaultBinary = "firecracker"
	DefaultJailer = "jailer"
	// DefaultProbeUID is Debian's "nobody".
	DefaultProbeUID = 65534
	// DefaultStartTimeout is for a host on which many machines start at once; an idle one needs 50 ms.
	DefaultStartTimeout = 30 * time.Second
)

const (
	driverName = "firecracker"
	// maxVCPUs is Firecracker's limit.
	maxVCPUs = 32
	// otherDevices are those that are not disks: vsock, entropy and, counted always, the network device.
	otherDevices = 3
	// overheadMiB is what a monitor may use beside the guest's memory: itself 5 MiB, page tables of 2 MiB for each
	// GiB of the guest, and the page cache of its disks, which gives way.
	overheadMiB = 64
)

// maxDevices is how many devices on virtio-mmio have an interrupt, by architecture.
var maxDevices = map[string]int{"amd64": 17, "arm64": 92}

func maxDisks() int { return maxDevices[runtime.GOARCH] - otherDevices }

// Options configure a driver. JailDir is needed, and so are Kernel, Initramfs and CacheDir; everything else has a
// good default.
type Options struct {
	// Binary and Jailer are names in PATH, or paths. Both must be of one release. Binary has to be linked
	// statically, as releases are.
	Binary, Jailer string
	// Holder is the program file of package holder, or of a program that begins with holder.Enter. The
	// default is the running program.
	Holder string
	// JailDir is where jails are made, on the file system of the images and of every disk that is not read-only,
	// and not mounted with nodev or noexec. It is created when missing. Drivers of several processes may share one.
	JailDir string
	// Kernel and Initramfs are what the probe for KVM boots; the first byte that the guest sends on the control
	// channel proves that KVM works.
	Kernel, Initramfs string
	// CacheDir is where the probe's answer is remembered. It is created when missing.
	CacheDir string
	// ProbeUID and ProbeGID are the identity of the probe's monitor.
	ProbeUID, ProbeGID uint32
	// StartTimeout bounds what a monitor may take until the guest runs.
	StartTimeout time.Duration
	// Log gets what cannot be reported to a caller. Nil discards.
	Log *slog.Logger
}

// A Driver starts machines with Firecracker.
type Driver struct {
	opts Options
	// needs checks what a host must have; tests with a stand-in for Firecracker need less.
	needs func() error

	// probing is held during a probe, so that concurrent callers share one.
	probing sync.Mutex
	host    *host // guarded by probing; nil until the first successful probe
}

var (
	_ vm.Driver  = (*Driver)(nil)
	_ vm.Sweeper = (*Driver)(nil)
)

// host is what the driver found on this host.
type host struct {
	binary, jailer string // resolved
	caps           vm.Capabilities
	hierarchy      *cgroup.Hierarchy // nil: memory is not accounted
}

// New returns a driver. It looks at nothing on the host yet; Probe and Start do.
func New(opts Options) (*Driver, error) {
	opts.Binary = or(opts.Binary, DefaultBinary)
	opts.Jailer = or(opts.Jailer, DefaultJailer)
	opts.ProbeUID = or(opts.ProbeUID, DefaultProbeUID)
	opts.ProbeGID = or(opts.ProbeGID, DefaultProbeUID)
	opts.StartTimeout = or(opts.StartTimeout, DefaultStartTimeout)
	if opts.Holder == "" && !holder.Able() {
		return nil, errors.New("no program to hold monitors is named, and this one is none, as it does not call holder.Enter")
	}
	if opts.Holder == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program that is to hold monitors: %w", err)
		}
		opts.Holder = self
	}
	opts.Log = or(opts.Log, slog.New(slog.DiscardHandler))
	switch {
	case maxDevices[runtime.GOARCH] == 0:
		return nil, fmt.Errorf("firecracker does not run on %s", runtime.GOARCH)
	case !filepath.IsAbs(opts.JailDir):
		return nil, fmt.Errorf("directory for jails %q is not an absolute path", opts.JailDir)
	case opts.Kernel == "" || opts.Initramfs == "" || opts.CacheDir == "":
		return nil, errors.New("firecracker needs a kernel, an initramfs and a cache directory to find out whether KVM works")
	case opts.StartTimeout < 0:
		return nil, fmt.Errorf("start timeout %v is negative", opts.StartTimeout)
	}
	return &Driver{opts: opts, needs: needRootAndKVM}, nil
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Name implements vm.Driver.
func (d *Driver) Name() string { return driverName }

// Start implements vm.Driver. Read-only files on another file system than JailDir are copied into the jail,
// which is slow; other disks have to be on the same.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	h, err := d.found(ctx)
	if err != nil {
		return nil, err
	}
	m, err := d.start(ctx, h, spec)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return m, nil
}

// start runs a machine. It is apart from Start because the probe calls it too.
func (d *Driver) start(ctx context.Context, h *host, spec vm.Spec) (_ *machine, err error) {
	if err := refuse(spec); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.opts.StartTimeout, fmt.Errorf("not running after %v", d.opts.StartTimeout))
	defer cancel()
	m := &machine{id: spec.ID, log: d.opts.Log.With("machine", spec.ID)}
	var group *cgroup.Group
	defer func() {
		if err != nil && m.Monitor == nil {
			m.undo(group)
		}
	}()
	if m.jail, err = newJail(d.opts.JailDir, filepath.Base(h.binary), spec, m.log); err != nil {
		return nil, vm.JailError(err)
	}
	if err := m.listen(spec.UID, spec.GID); err != nil {
		return nil, vm.JailError(err)
	}
	if spec.Cgroup != "" && h.hierarchy != nil {
		limits, err := spec.Limits(h.caps.OverheadMiB)
		if err != nil {
			return nil, err
		}
		if group, err = h.hierarchy.Create(spec.Cgroup, limits); err != nil {
			return nil, vm.JailError(err)
		}
	}
	if err := m.spawn(h, d.opts, spec, group); err != nil {
		return nil, errors.Join(err, vm.RemoveRecord(spec.Dir))
	}
	if err := m.configure(ctx, spec); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// undo removes what was made for a machine whose monitor does not run.
func (m *machine) undo(group *cgroup.Group) {
	m.closeChannels()
	if m.jail != nil {
		m.removeJail()
	}
	if group == nil {
		return
	}
	if err := group.Remove(); err != nil {
		m.log.Warn("cgroup is left behind", "error", err)
	}
}

// refuse checks what needs no look at the host.
func refuse(spec vm.Spec) error {
	if err := spec.Validate(maxDisks()); err != nil {
		return err
	}
	uid, gid := os.Geteuid(), os.Getegid()
	switch {
	case spec.VCPUs > maxVCPUs:
		return &vm.SpecError{Field: "VCPUs", Reason: fmt.Sprintf("%d are more than the %d that Firecracker can give", spec.VCPUs, maxVCPUs)}
	case uid == 0 && spec.UID == 0:
		return &vm.SpecError{Field: "UID", Reason: "is 0: a monitor never runs as root"}
	case uid != 0 && (int(spec.UID) != uid || int(spec.GID) != gid):
		return &vm.SpecError{Field: "UID", Reason: fmt.Sprintf("is %d:%d, but only root can start a monitor that is not %d:%d", spec.UID, spec.GID, uid, gid)}
	}
	return nil
}
