package firecrackertest

import (
	"bufio"
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
	"strings"
	"sync"
	"time"

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
	code := <-m.over
	// The answer to the start is out before a guest can end the process. Everything else ends with the process.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = server.Shutdown(ctx) // the process ends either way
	return code
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

// findGuest chooses the guest by the first line of the initramfs. One that is an archive, as machines really boot, stands for
// the guest RealInit.
func (m *monitor) findGuest(initrd string) (Guest, error) {
	f, err := os.Open(inJail(initrd))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	name := RealInit
	if magic, _ := in.Peek(len(cpioMagic)); string(magic) != cpioMagic {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("read the initramfs: %w", err)
		}
		name, _ = strings.CutPrefix(strings.TrimSpace(line), "guest ")
	}
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
	if number, ok := errors.AsType[unix.Errno](err); ok {
		what := number.Error()
		return fmt.Sprintf("%s%s (os error %d)", strings.ToUpper(what[:1]), what[1:], int(number))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "No such file or directory (os error 2)"
	}
	return err.Error()
}
