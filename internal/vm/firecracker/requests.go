package firecracker

import (
	"fmt"
	"strings"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// Files in a jail, as the monitor sees them.
const (
	jailKernel    = "/kernel"
	jailInitramfs = "/initramfs"
	jailConsole   = "/console"
	jailLog       = "/log"
	jailMetrics   = "/metrics"
	jailRun       = "/run"
	jailAPI       = jailRun + "/firecracker.socket"
	jailVsock     = jailRun + "/vsock"
)

// jailDisk is the file of disk number n. Disk ids can't name anything here: the API wants letters, digits and
// underscores.
func jailDisk(n int) string { return fmt.Sprintf("/disk%d", n) }

// guestCID is the guest's address. It is the same in all machines: each monitor has a network of vsock of its own.
const guestCID = 3

// ports are the vsock ports of the host that a guest connects to for its channels.
var ports = map[vm.Channel]int{vm.Control: 7001, vm.Logs: 7002}

// kernelWords are the guest kernel's command line. It is given in full because Firecracker's default forbids
// modules.
var kernelWords = []string{
	// Quiet still shows errors and panics, which is what the console is for.
	"console=ttyS0", "quiet",
	// A reset through the keyboard controller is the only one that Firecracker knows on amd64. A panic resets after
	// a second.
	"reboot=k", "panic=1",
	"random.trust_cpu=on", "cryptomgr.notests",
	// The keyboard controller has no mouse, and probing for one takes long.
	"i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
}

// A request is one PUT to the monitor.
type request struct {
	path string
	body any
}

// The bodies have the fields that Firecracker 1.15 knows, which refuses others. Nothing is left to defaults that
// matter.
type (
	loggerBody struct {
		LogPath       string `json:"log_path"`
		Level         string `json:"level"`
		ShowLevel     bool   `json:"show_level"`
		ShowLogOrigin bool   `json:"show_log_origin"`
	}
	metricsBody struct {
		MetricsPath string `json:"metrics_path"`
	}
	serialBody struct {
		SerialOutPath string `json:"serial_out_path"`
	}
	machineBody struct {
		VCPUCount       int  `json:"vcpu_count"`
		MemSizeMiB      int  `json:"mem_size_mib"`
		SMT             bool `json:"smt"`
		TrackDirtyPages bool `json:"track_dirty_pages"`
	}
	bootBody struct {
		KernelImagePath string `json:"kernel_image_path"`
		InitrdPath      string `json:"initrd_path"`
		BootArgs        string `json:"boot_args"`
	}
	driveBody struct {
		DriveID      string `json:"drive_id"`
		PathOnHost   string `json:"path_on_host"`
		IsRootDevice bool   `json:"is_root_device"`
		IsReadOnly   bool   `json:"is_read_only"`
		CacheType    string `json:"cache_type"`
		IOEngine     string `json:"io_engine"`
	}
	networkBody struct {
		IfaceID     string `json:"iface_id"`
		HostDevName string `json:"host_dev_name"`
		GuestMAC    string `json:"guest_mac"`
	}
	vsockBody struct {
		GuestCID int    `json:"guest_cid"`
		UDSPath  string `json:"uds_path"`
	}
	entropyBody struct{}
	actionBody  struct {
		ActionType string `json:"action_type"`
	}
)

// requests are what makes a fresh monitor run the machine, in order. They are a function of the spec only, and
// hold nothing that a user of Pinnace wrote.
func requests(s vm.Spec) []request {
	all := []request{
		// First, so that what goes wrong later is in the log.
		{"/logger", loggerBody{LogPath: jailLog, Level: "Warning", ShowLevel: true}},
		{"/metrics", metricsBody{jailMetrics}},
		{"/serial", serialBody{jailConsole}},
		{"/machine-config", machineBody{VCPUCount: s.VCPUs, MemSizeMiB: s.MemoryMiB}},
		{"/boot-source", bootBody{jailKernel, jailInitramfs, strings.Join(kernelWords, " ")}},
	}
	// The guest gets the disks in this order.
	for i, d := range s.Disks {
		id := strings.TrimPrefix(jailDisk(i), "/")
		all = append(all, request{"/drives/" + id, driveBody{
			DriveID: id, PathOnHost: jailDisk(i), IsReadOnly: d.ReadOnly, CacheType: cacheType(d), IOEngine: "Sync",
		}})
	}
	if s.NIC != nil {
		all = append(all, request{"/network-interfaces/eth0", networkBody{"eth0", s.NIC.Tap, s.NIC.MAC}})
	}
	return append(all,
		request{"/vsock", vsockBody{guestCID, jailVsock}},
		request{"/entropy", entropyBody{}},
		request{"/actions", actionBody{"InstanceStart"}})
}

// cacheType says whether the guest's flush reaches the host's disk.
func cacheType(d vm.Disk) string {
	if d.Durable && !d.ReadOnly {
		return "Writeback"
	}
	return "Unsafe"
}

const (
	// maxCommandLine is what Firecracker allows, with the zero byte at the end.
	maxCommandLine = 2048
	// deviceWords bounds what Firecracker adds for each device: " virtio_mmio.device=4K@0x…:NN".
	deviceWords = 48
	// moreWords bounds what it adds besides: " pci=off" and room for what later releases may find.
	moreWords = 64
)

// commandLineLength is the most that the guest kernel's command line can grow to.
func commandLineLength(devices int) int {
	return len(strings.Join(kernelWords, " ")) + devices*deviceWords + moreWords + 1
}
