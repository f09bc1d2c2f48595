package firecrackertest

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// config is what a machine was configured to be.
type config struct {
	boot      *bootSource
	machine   machineConfig
	drives    []drive
	networks  []network
	vsock     *vsock
	vsockHost net.Listener
	entropy   bool
	serial    string
}

type (
	bootSource struct {
		KernelImagePath string `json:"kernel_image_path"`
		InitrdPath      string `json:"initrd_path"`
		BootArgs        string `json:"boot_args"`
	}
	machineConfig struct {
		VCPUCount  int    `json:"vcpu_count"`
		MemSizeMiB uint64 `json:"mem_size_mib"`
		SMT        bool   `json:"smt"`
	}
	drive struct {
		DriveID      string  `json:"drive_id"`
		PathOnHost   *string `json:"path_on_host"`
		IsRootDevice bool    `json:"is_root_device"`
		IsReadOnly   *bool   `json:"is_read_only"`
		CacheType    string  `json:"cache_type"`
	}
	network struct {
		IfaceID     string `json:"iface_id"`
		HostDevName string `json:"host_dev_name"`
		GuestMAC    string `json:"guest_mac"`
	}
	vsock struct {
		GuestCID uint32 `json:"guest_cid"`
		UDSPath  string `json:"uds_path"`
	}
)

// openOutput opens a file or FIFO as Firecracker does: without waiting, without appending.
func openOutput(path string) (*os.File, error) {
	return os.OpenFile(inJail(path), os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
}

func (m *monitor) setLogger(body []byte) error {
	var l struct {
		Path string `json:"log_path"`
	}
	if err := json.Unmarshal(body, &l); err != nil {
		return err
	}
	if l.Path == "" {
		return nil
	}
	f, err := openOutput(l.Path)
	if err != nil {
		return faultf("Logger error: Failed to open target file: %v", osError(err))
	}
	m.log = f
	return nil
}

func (m *monitor) setMetrics(body []byte) error {
	var o struct {
		Path string `json:"metrics_path"`
	}
	if err := json.Unmarshal(body, &o); err != nil {
		return err
	}
	if m.metrics != io.Discard {
		return faultf("Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed.")
	}
	f, err := openOutput(o.Path)
	if err != nil {
		return faultf("Metrics error: Cannot initialize the metrics system due to bad user input: %v", osError(err))
	}
	m.metrics = f
	return nil
}

func (m *monitor) setMachine(body []byte) error {
	var c machineConfig
	if err := json.Unmarshal(body, &c); err != nil {
		return err
	}
	switch {
	case c.VCPUCount == 0 || c.VCPUCount > maxVCPUs || (c.SMT && c.VCPUCount > 1 && c.VCPUCount%2 == 1):
		return faultf("Machine config error: The vCPU number is invalid! The vCPU number can only be 1 or an even number when SMT is enabled.")
	case c.MemSizeMiB == 0:
		return faultf("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.")
	}
	m.config.machine = c
	return nil
}

func (m *monitor) setBootSource(body []byte) error {
	var b bootSource
	if err := json.Unmarshal(body, &b); err != nil {
		return err
	}
	kernel, err := os.ReadFile(inJail(b.KernelImagePath))
	if err != nil {
		return faultf("Boot source error: The kernel file cannot be opened: %v", osError(err))
	}
	if _, err := os.ReadFile(inJail(b.InitrdPath)); err != nil {
		return faultf("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. %v", osError(err))
	}
	if len(b.BootArgs)+1 > maxCmdline {
		return faultf("Boot source error: The kernel command line is invalid: Too large.")
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		b.KernelImagePath = "" // found out only when it is loaded
	}
	m.config.boot = &b
	return nil
}

func (m *monitor) addDrive(id string, body []byte) error {
	var d drive
	if err := json.Unmarshal(body, &d); err != nil {
		return err
	}
	at := slices.IndexFunc(m.config.drives, func(o drive) bool { return o.DriveID == d.DriveID })
	switch {
	case id != d.DriveID:
		return faultf("The id from the path does not match the id from the body!")
	case d.PathOnHost == nil || d.IsReadOnly == nil:
		return faultf("Drive config error: Unable to create the virtio block device: Device initialisation failed: Cannot create config.")
	case d.IsRootDevice && at < 0 && slices.ContainsFunc(m.config.drives, func(o drive) bool { return o.IsRootDevice }):
		return faultf("Drive config error: A root block device already exists!")
	}
	flags := os.O_RDWR
	if *d.IsReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(inJail(*d.PathOnHost), flags, 0)
	if err != nil {
		return faultf("Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: %v %s", osError(err), *d.PathOnHost)
	}
	f.Close()
	switch {
	case at >= 0:
		m.config.drives[at] = d
	case d.IsRootDevice:
		m.config.drives = slices.Insert(m.config.drives, 0, d)
	default:
		m.config.drives = append(m.config.drives, d)
	}
	return nil
}

func (m *monitor) addNetwork(id string, body []byte) error {
	var n network
	if err := json.Unmarshal(body, &n); err != nil {
		return err
	}
	if id != n.IfaceID {
		return faultf("The id from the path [%s] does not match the id from the body [%s]!", id, n.IfaceID)
	}
	if mac, err := net.ParseMAC(n.GuestMAC); n.GuestMAC != "" && (err != nil || len(mac) != 6) {
		return decodeError("invalid value: string, expected a MAC address", int64(len(body)))
	}
	for _, o := range m.config.networks {
		if o.IfaceID != n.IfaceID && o.GuestMAC == n.GuestMAC {
			return faultf("Network config error: The MAC address is already in use: %s", n.GuestMAC)
		}
	}
	if m.taps != nil {
		result := make(chan error)
		m.taps <- tapRequest{n.HostDevName, result}
		if err := <-result; err != nil {
			return faultf("Network config error: Could not create the network device: Open tap device failed: Error while creating ifreq structure: %v", osError(err))
		}
	}
	m.config.networks = append(m.config.networks, n)
	return nil
}

func (m *monitor) setVsock(body []byte) error {
	var v vsock
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	if m.config.vsockHost != nil {
		if err := m.config.vsockHost.Close(); err != nil {
			return faultf("Vsock config error: %v", osError(err))
		}
	}
	l, err := net.Listen("unix", inJail(v.UDSPath))
	if err != nil {
		return faultf("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: %v", osError(err))
	}
	m.config.vsock, m.config.vsockHost = &v, l
	return nil
}
