package vm

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// Bounds of a Spec.
const (
	// MinMemoryMiB is the least memory with which a stock Debian kernel boots and leaves room for a small
	// workload: with 64 MiB it panics.
	MinMemoryMiB = 96
	MaxMemoryMiB = 1 << 20
	MaxVCPUs     = 64
	// MaxDiskID is the length of a virtio-blk serial.
	MaxDiskID = 20
)

// A Spec says what machine to run. The host's side of it is trusted: paths are used as they are.
type Spec struct {
	// ID names the machine in messages and in its record; unique among the machines that run.
	ID string
	// Dir is an existing directory for this machine alone, on the host. The driver puts its sockets and
	// the machine's record there, and removes them when the machine has ended.
	Dir string
	// Kernel and Initramfs are files that UID can read; their directories need not be accessible to it.
	Kernel, Initramfs string
	VCPUs             int
	// MemoryMiB is the guest's RAM.
	MemoryMiB int
	// Disks are found in the guest by serial, which is the disk's ID. With drivers that cannot give serials
	// (Firecracker makes them of digits only) they appear as vda, vdb and so on in this order; with others the
	// order is not promised.
	Disks []Disk
	// NIC is the network device, or nil for none.
	NIC *NIC
	// Netns is the path of the network namespace that the NIC's tap is in and that the monitor runs in,
	// or empty for the caller's.
	Netns string
	// UID and GID are the identity of the monitor's process. Anything but the caller's own needs root.
	UID, GID uint32
	// Cgroup is the name of the machine's own cgroup below the mount points of the host's hierarchies, such as
	// "pinnace/vm-x", or empty for the caller's. The driver makes and removes its last element, and bounds what the
	// monitor and its holder use there: memory, processes, and what follows.
	Cgroup string
	// Kept are files that stay open for as long as the machine runs, whatever becomes of the process that started it:
	// locks on what the machine uses. After Start the caller closes its own.
	Kept []*os.File
	// CPUMilli is the machine's weight against others that want the processors at the same time, in thousandths of
	// one; 0 for the host's default.
	CPUMilli int64
	// IO bounds what the machine reads from and writes to each of the host's disks; zero fields don't.
	IO cgroup.IORate
	// Console is the file that gets the end of the console's output when the machine has ended, at most
	// ConsoleLimit bytes, or empty.
	Console string
}

// A Disk is a raw disk image.
type Disk struct {
	// ID is the serial by which the guest finds the disk: 1 to 20 of a-z, 0-9 and "-", unique in the Spec.
	ID string
	// Path is a file that the machine's UID can read when the disk is ReadOnly. Any other file may change its
	// owner to the UID.
	Path     string
	ReadOnly bool
	// Durable means that the guest's flush reaches the host's disk. Scratch disks do without, because
	// they don't outlive the machine.
	Durable bool
}

// A NIC is a virtio network device on a tap device that exists already.
type NIC struct {
	Tap string
	MAC string
}

// monitorThreads is what a monitor and its holder may have besides a thread for each virtual processor. QEMU has up to 64
// for IO, and a holder about ten.
const monitorThreads = 256

// Limits are those of the machine's cgroup. overheadMiB is what the monitor may need beside the guest's memory.
func (s *Spec) Limits(overheadMiB int) (cgroup.Limits, error) {
	l := cgroup.Limits{
		Memory: int64(s.MemoryMiB+overheadMiB) << 20, CPUMilli: s.CPUMilli, PIDs: int64(monitorThreads + s.VCPUs), IO: s.IO,
	}
	if s.IO == (cgroup.IORate{}) {
		return l, nil
	}
	var files []string
	for _, d := range s.Disks {
		files = append(files, d.Path)
	}
	var err error
	if l.Devices, err = cgroup.DevicesOf(files); err != nil {
		return l, &SpecError{"IO", fmt.Sprintf("cannot be bounded: %v", err)}
	}
	return l, nil
}

// A SpecError says what is wrong with a Spec.
type SpecError struct {
	Field  string
	Reason string
}

func (e *SpecError) Error() string { return fmt.Sprintf("machine's %s: %s", e.Field, e.Reason) }

// Is implements the interface of errors.Is: no monitor is started for such a spec.
func (e *SpecError) Is(target error) bool { return target == ErrJail }

// Validate checks everything about s that needs no look at the host, with at most maxDisks disks. The
// error is a *SpecError.
func (s *Spec) Validate(maxDisks int) error {
	switch {
	case s.ID == "":
		return &SpecError{"ID", "is empty"}
	case !filepath.IsAbs(s.Dir):
		return &SpecError{"Dir", fmt.Sprintf("%q is not an absolute path", s.Dir)}
	case s.Kernel == "":
		return &SpecError{"Kernel", "is empty"}
	case s.Initramfs == "":
		return &SpecError{"Initramfs", "is empty"}
	case s.VCPUs < 1 || s.VCPUs > MaxVCPUs:
		return &SpecError{"VCPUs", fmt.Sprintf("%d is not in 1 to %d", s.VCPUs, MaxVCPUs)}
	case s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB:
		return &SpecError{"MemoryMiB", fmt.Sprintf("%d is not in %d to %d", s.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)}
	case len(s.Disks) > maxDisks:
		return &SpecError{"Disks", fmt.Sprintf("%d are more than the %d that this driver can attach", len(s.Disks), maxDisks)}
	case s.Cgroup != "" && !filepath.IsLocal(s.Cgroup):
		return &SpecError{"Cgroup", fmt.Sprintf("%q is not a path below the hierarchy's mount point", s.Cgroup)}
	case s.CPUMilli < 0 || s.IO.Bytes < 0 || s.IO.Operations < 0:
		return &SpecError{"CPUMilli and IO", "are not to be negative"}
	case s.UID == ^uint32(0) || s.GID == ^uint32(0):
		return &SpecError{"UID", "4294967295 means no identity"}
	}
	if err := s.validateDisks(); err != nil {
		return err
	}
	return s.NIC.validate()
}

func (s *Spec) validateDisks() error {
	seen := make(map[string]bool, len(s.Disks))
	for i, d := range s.Disks {
		field := fmt.Sprintf("Disks[%d]", i)
		switch {
		case !validDiskID(d.ID):
			return &SpecError{field, fmt.Sprintf("ID %q is not 1 to %d of a-z, 0-9 and \"-\"", d.ID, MaxDiskID)}
		case seen[d.ID]:
			return &SpecError{field, fmt.Sprintf("ID %q is used twice", d.ID)}
		case d.Path == "":
			return &SpecError{field, "has no path"}
		}
		seen[d.ID] = true
	}
	return nil
}

func validDiskID(id string) bool {
	if id == "" || len(id) > MaxDiskID {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (n *NIC) validate() error {
	if n == nil {
		return nil
	}
	// IFNAMSIZ is 16 with the terminating zero.
	if n.Tap == "" || len(n.Tap) > 15 {
		return &SpecError{"NIC", fmt.Sprintf("tap name %q is not 1 to 15 bytes", n.Tap)}
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return &SpecError{"NIC", fmt.Sprintf("%q is not the MAC address of one device", n.MAC)}
	}
	return nil
}
