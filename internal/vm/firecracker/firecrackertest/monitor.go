package firecrackertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxBody    = 51200 // --http-api-max-payload-size
	maxDevices = 17    // on virtio-mmio, on amd64
	maxVCPUs   = 32
	maxCmdline = 2048

	exitArguments = 153
	postBoot      = "The requested operation is not supported after starting the microVM."
	preBoot       = "The requested operation is not supported before starting the microVM."
)

// A monitor is one process of the stand-in. Its paths are relative to its working directory, which is the jail.
type monitor struct {
	guests map[string]Guest
	taps   chan<- tapRequest
	over   chan int // gets the exit status

	mu      sync.Mutex // held while a request is handled, as the real one has one thread for them
	running bool
	config  config
	log     io.Writer
	console io.Writer
	metrics io.Writer
}

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

// runFirecracker is Firecracker from its arguments to its exit status.
func runFirecracker(args []string, guests map[string]Guest, taps chan<- tapRequest) int {
	socket := "/run/firecracker.socket"
	for len(args) > 0 {
		switch {
		case args[0] == "--version":
			fmt.Printf("Firecracker v%s\n\n", Version)
			return 0
		case args[0] == "--api-sock" && len(args) > 1:
			socket = args[1]
		case args[0] == "--id" && len(args) > 1 && instanceID.MatchString(args[1]):
		default:
			fmt.Fprintf(os.Stderr, "Error: ParseArguments(UnexpectedArgument(%q))\n", args[0])
			return exitArguments
		}
		args = args[2:]
	}
	m := &monitor{guests: guests, taps: taps, over: make(chan int, 1), log: os.Stdout, console: os.Stdout, metrics: io.Discard}
	l, err := net.Listen("unix", inJail(socket))
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: RunWithApi(FailedToBindSocket(%v))\n", err)
		return 1
	}
	server := &http.Server{Handler: m} //nolint:gosec // its client is the test
	go func() { _ = server.Serve(l) }()
	// As with the real one, everything else ends with the process.
	return <-m.over
}

// inJail is the path by which the process reaches a file of the jail.
func inJail(path string) string { return "./" + strings.TrimPrefix(path, "/") }

// A fault is an answer that refuses. The real one refuses everything with 400.
type fault string

func (f fault) Error() string { return string(f) }

func faultf(format string, args ...any) fault { return fault(fmt.Sprintf(format, args...)) }

// ServeHTTP implements http.Handler.
func (m *monitor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.Header().Set("Server", "Firecracker API")
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return
	case len(body) > maxBody:
		answer(w, http.StatusRequestEntityTooLarge, faultf("HTTP request payload is larger than %d bytes", maxBody))
		return
	case r.ContentLength < 0:
		answer(w, http.StatusBadRequest, faultf("Unsupported header: Transfer-Encoding."))
		return
	}
	if r.Method == http.MethodGet {
		m.get(w, r.URL.Path)
		return
	}
	if err := m.put(r.Method, r.URL.Path, body); err != nil {
		fmt.Fprintf(m.log, "ERROR Received Error. Status code: 400 Bad Request. Message: %v\n", err)
		answer(w, http.StatusBadRequest, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
}

func (m *monitor) get(w http.ResponseWriter, path string) {
	state := "Not started"
	if m.running {
		state = "Running"
	}
	var body map[string]string
	switch path {
	case "/":
		body = map[string]string{"id": "id", "state": state, "vmm_version": Version, "app_name": "Firecracker"}
	case "/version":
		body = map[string]string{"firecracker_version": Version}
	default:
		answer(w, http.StatusBadRequest, faultf("Invalid request method and/or path: GET %s.", strings.Trim(path, "/")))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

var resourceID = regexp.MustCompile(`\A[A-Za-z0-9_]+\z`)

// put parses a request and acts on it.
func (m *monitor) put(method, path string, body []byte) error {
	what, id, hasID := strings.Cut(strings.Trim(path, "/"), "/")
	fields, known := schemas[what]
	withID := what == "drives" || what == "network-interfaces"
	switch {
	case method != http.MethodPut || !known:
		return faultf("Invalid request method and/or path: %s %s.", method, what)
	case len(body) == 0:
		return faultf("Empty PUT request.")
	case withID && !hasID:
		return faultf("The ID cannot be empty.")
	case withID && !resourceID.MatchString(id):
		return faultf("API Resource IDs can only contain alphanumeric characters and underscores.")
	}
	if err := check(fields, body); err != nil {
		return err
	}
	return m.act(what, id, body)
}

func (m *monitor) act(what, id string, body []byte) error {
	if m.running && what != "actions" {
		return faultf(postBoot)
	}
	switch what {
	case "logger":
		return m.setLogger(body)
	case "metrics":
		return m.setMetrics(body)
	case "serial":
		var s struct {
			Path string `json:"serial_out_path"`
		}
		defer func() { m.config.serial = s.Path }()
		return json.Unmarshal(body, &s)
	case "machine-config":
		return m.setMachine(body)
	case "boot-source":
		return m.setBootSource(body)
	case "drives":
		return m.addDrive(id, body)
	case "network-interfaces":
		return m.addNetwork(id, body)
	case "vsock":
		return m.setVsock(body)
	case "entropy":
		m.config.entropy = true
		return nil
	}
	return m.doAction(body)
}

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
		m.config.vsockHost.Close()
	}
	l, err := net.Listen("unix", inJail(v.UDSPath))
	if err != nil {
		return faultf("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: %v", osError(err))
	}
	m.config.vsock, m.config.vsockHost = &v, l
	return nil
}

func (m *monitor) doAction(body []byte) error {
	var a struct {
		Type string `json:"action_type"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return err
	}
	switch {
	case a.Type == "InstanceStart" && m.running:
		return faultf(postBoot)
	case a.Type == "InstanceStart":
		return m.start()
	case !m.running:
		return faultf(preBoot)
	}
	return nil
}

// start runs the machine.
func (m *monitor) start() error {
	c := m.config
	if c.boot == nil {
		return faultf("Start microvm error: Cannot start microvm without kernel configuration.")
	}
	if c.boot.KernelImagePath == "" {
		return faultf("Start microvm error: Cannot load kernel due to invalid memory configuration or invalid kernel image: Kernel Loader: failed to load ELF kernel image")
	}
	devices := len(c.drives) + len(c.networks)
	if c.vsock != nil {
		devices++
	}
	if c.entropy {
		devices++
	}
	if devices > maxDevices {
		return faultf("Start microvm error: Could not attach device: Error allocating resources: Failed to allocate requested resource: Out of bounds")
	}
	if len(c.boot.BootArgs)+len(" pci=off")+devices*len(" virtio_mmio.device=4K@0xc0001000:23") >= maxCmdline {
		return faultf("Start microvm error: Could not attach device: Error adding kernel command line parameters: Inserting string would make command line too long.")
	}
	guest, err := m.findGuest(c.boot.InitrdPath)
	if err != nil {
		return faultf("Start microvm error: %v", err)
	}
	if c.serial != "" {
		f, err := openOutput(c.serial)
		if err != nil {
			return faultf("Start microvm error: Error creating legacy device: %v", osError(err))
		}
		m.console = f
	}
	m.running = true
	fmt.Fprintf(m.metrics, "{\"utc_timestamp_ms\":0}\n")
	go m.run(guest, newMachine(c, m.console))
	return nil
}

// findGuest chooses the guest by the first line of the initramfs.
func (m *monitor) findGuest(initrd string) (Guest, error) {
	f, err := os.Open(inJail(initrd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("read the initramfs: %w", err)
	}
	name, _ := strings.CutPrefix(strings.TrimSpace(line), "guest ")
	guest, ok := m.guests[name]
	if !ok {
		return nil, fmt.Errorf("the test has no guest %q", name)
	}
	return guest, nil
}

// run plays the guest until it resets the machine, which ends the process.
func (m *monitor) run(guest Guest, on *Machine) {
	end := guest(context.Background(), on)
	if end.Panic != "" {
		fmt.Fprintf(m.console, "[    1.000000] Kernel panic - not syncing: %s\r\n", end.Panic)
	}
	if end.Code != 0 {
		fmt.Fprintf(m.log, "ERROR Firecracker exiting with error. exit_code=%d\n", end.Code)
	}
	m.over <- end.Code
}

// osError words an error of the system as Rust does.
func osError(err error) string {
	var number unix.Errno
	if errors.As(err, &number) {
		what := number.Error()
		return fmt.Sprintf("%s%s (os error %d)", strings.ToUpper(what[:1]), what[1:], int(number))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "No such file or directory (os error 2)"
	}
	return err.Error()
}
