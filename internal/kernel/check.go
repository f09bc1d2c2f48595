package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// oldest is the first release whose EROFS mounts our images: 512-byte blocks, extra devices and a flat
// device came together in 6.6.
var oldest = [...]int{6, 6}

// phase says when init loads the modules of an option.
type phase string

const (
	early phase = "early" // before init can say hello over the control channel
	late  phase = "late"  // while it waits for its configuration
	vsock phase = "vsock" // after early, in VMs with a virtio socket device
	rng   phase = "rng"   // after late, in VMs with a virtio entropy device
)

// option is a build option that guests have a use for.
type option struct {
	name     string // without CONFIG_
	purpose  string
	module   string // what =m makes of it; empty when the option can only be built in
	phase    phase
	arch     string // GOARCH that needs it; empty for all
	optional bool   // a guest can do without on some VMM
}

// options is in load order within each phase.
var options = []option{
	{name: "VIRTIO_CONSOLE", purpose: "the control channel", module: "virtio_console", phase: early},
	{name: "VIRTIO_MMIO", purpose: "the bus of all devices", module: "virtio_mmio", phase: early},
	{name: "VIRTIO_BLK", purpose: "disks", module: "virtio_blk", phase: late},
	{name: "EROFS_FS", purpose: "images", module: "erofs", phase: late},
	{name: "OVERLAY_FS", purpose: "the writable root", module: "overlay", phase: late},
	{name: "EXT4_FS", purpose: "the scratch disk", module: "ext4", phase: late},
	{name: "VIRTIO_NET", purpose: "the network", module: "virtio_net", phase: late},
	{name: "VIRTIO_VSOCKETS", purpose: "the control channel on Firecracker", module: "vmw_vsock_virtio_transport", phase: vsock, optional: true},
	{name: "HW_RANDOM_VIRTIO", purpose: "randomness from the host", module: "virtio_rng", phase: rng, optional: true},
	{name: "EFI_PARTITION", purpose: "layers packed on one disk"},
	{name: "BLK_DEV_INITRD", purpose: "starting init"},
	{name: "DEVTMPFS", purpose: "device nodes"},
	{name: "PROC_FS", purpose: "/proc"},
	{name: "SYSFS", purpose: "/sys"},
	{name: "TMPFS", purpose: "/tmp and /run"},
	{name: "MEMCG", purpose: "telling an out-of-memory kill from a crash"},
	{name: "CGROUP_PIDS", purpose: "process limits"},
	{name: "UNIX", purpose: "unix sockets"},
	{name: "INET", purpose: "IPv4"},
	{name: "ACPI", purpose: "finding the devices", arch: "amd64"},
}

// archOption is set in the config of kernels for that GOARCH.
var archOption = map[string]string{"amd64": "X86_64", "arm64": "ARM64"}

// An UnfitError says why a kernel cannot boot a guest on this machine.
type UnfitError struct {
	Release string
	// Problems are all that is wrong, each for people; those of build options begin with the option's name.
	Problems []string
	err      error // the one behind the only problem, or nil
}

func (e *UnfitError) Error() string {
	return "kernel " + e.Release + ": " + strings.Join(e.Problems, ", ")
}
func (e *UnfitError) Unwrap() error { return e.err }

func (s Source) unfit(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &UnfitError{Release: s.Release, Problems: []string{err.Error()}, err: errors.Unwrap(err)}
}

// Check says whether the kernel can boot a guest on this machine. Its error is a *UnfitError and names everything that
// is missing, and what the guest would need it for.
func (s Source) Check() error { return s.check(runtime.GOARCH) }

func (s Source) check(arch string) error {
	v := version(s.Release)
	if len(v) == 0 {
		return s.unfit("the folder's name is not a kernel release such as 6.12.95+deb13-cloud-%s", arch)
	}
	if slices.Compare(v, oldest[:]) < 0 {
		return s.unfit("it is too old: guests need %d.%d or newer, whose EROFS can mount images", oldest[0], oldest[1])
	}
	config, err := s.readConfig()
	if err != nil {
		return err
	}
	if want := archOption[arch]; want != "" && config[want] != "y" {
		return s.unfit("it is not for this machine's architecture, %s (CONFIG_%s is not set)", arch, want)
	}
	if missing := missingOptions(config, arch); len(missing) > 0 {
		return &UnfitError{Release: s.Release, Problems: missing}
	}
	return s.checkImage(arch)
}

// missingOptions are all options that are missing, not only the first.
func missingOptions(config map[string]string, arch string) (missing []string) {
	for _, o := range options {
		if o.optional || (o.arch != "" && o.arch != arch) {
			continue
		}
		switch value := config[o.name]; {
		case value == "y", value == "m" && o.module != "":
		case value == "m":
			missing = append(missing, fmt.Sprintf("CONFIG_%s=m must be built in (for %s)", o.name, o.purpose))
		default:
			missing = append(missing, fmt.Sprintf("CONFIG_%s is not set (for %s)", o.name, o.purpose))
		}
	}
	return missing
}

// checkImage compares the release in the image's own header with the folder's name: with modules of
// another release the guest would boot and then find no device.
func (s Source) checkImage(arch string) error {
	if arch != "amd64" {
		return nil // an arm64 Image has no such field
	}
	image, err := readFile(s.Image(), maxImage)
	if err != nil {
		return s.unfit("%w", err)
	}
	h, err := parseBzImage(image)
	if err != nil {
		return s.unfit("%w", err)
	}
	if release, _, _ := strings.Cut(h.version, " "); release != s.Release {
		return s.unfit("the image in that folder is of release %q", release)
	}
	return nil
}

// readConfig reads what the kernel was built with: option without CONFIG_ -> value. Options that are not
// set are not in it.
func (s Source) readConfig() (map[string]string, error) {
	b, err := readFile(s.configPath(), maxConfig)
	if err != nil {
		return nil, s.unfit("its build configuration is needed to know what it can do: %w", err)
	}
	config := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "CONFIG_"), "=")
		if ok && !strings.HasPrefix(name, "#") {
			config[name] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, s.unfit("read config: %w", err)
	}
	return config, nil
}
