package firecrackertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// newMonitor returns a stand-in in a directory that is its jail, with a kernel and an initramfs.
func newMonitor(t *testing.T) *monitor {
	t.Helper()
	dir := vmtest.Dir(t)
	t.Chdir(dir)
	for name, content := range map[string]string{
		"kernel": string(Kernel()), "bzimage": "MZ", "initramfs": string(Initramfs("echo")), "disk": "512",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &monitor{
		guests: map[string]Guest{"echo": echoGuest}, over: make(chan int, 1), log: io.Discard, console: io.Discard, metrics: io.Discard,
	}
}

// echoGuest answers one connection of the host to port 52.
func echoGuest(_ context.Context, m *Machine) vmtest.End {
	conn := <-m.Listen(52)
	defer conn.Close()
	line, _ := bufio.NewReader(conn).ReadString('\n')
	fmt.Fprint(conn, line)
	return vmtest.End{}
}

// ask sends one request and returns "204" or the status with the message.
func (m *monitor) ask(t *testing.T, request, body string) string {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
	if w.Code == http.StatusNoContent {
		return "204"
	}
	return fmt.Sprint(w.Code, " ", strings.TrimSpace(w.Body.String()))
}

const (
	goodBoot  = `{"kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": "quiet"}`
	goodStart = `{"action_type": "InstanceStart"}`
)

// TestRefusals: every request that the real one refuses is refused, in its words as far as they are known.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct{ request, body, want string }{
		"unknown field":      {"PUT /machine-config", `{"vcpu_count": 1, "mem_size_mib": 128, "ht_enabled": false}`, "unknown field `ht_enabled`, expected one of `vcpu_count`"},
		"missing field":      {"PUT /machine-config", `{"vcpu_count": 1}`, "missing field `mem_size_mib`"},
		"wrong type":         {"PUT /machine-config", `{"vcpu_count": "1", "mem_size_mib": 128}`, "invalid type"},
		"too large a number": {"PUT /machine-config", `{"vcpu_count": 256, "mem_size_mib": 128}`, "invalid type"},
		"negative":           {"PUT /machine-config", `{"vcpu_count": 1, "mem_size_mib": -1}`, "invalid type"},
		"no processor":       {"PUT /machine-config", `{"vcpu_count": 0, "mem_size_mib": 128}`, "vCPU number is invalid"},
		"twice":              {"PUT /vsock", `{"guest_cid": 3, "guest_cid": 3, "uds_path": "v"}`, "duplicate field"},
		"no JSON":            {"PUT /entropy", `entropy`, "expected value"},
		"JSON and more":      {"PUT /entropy", `{} {}`, "trailing characters"},
		"half":               {"PUT /entropy", `{`, "EOF while parsing"},
		"empty":              {"PUT /entropy", ``, "Empty PUT request."},
		"too long":           {"PUT /entropy", strings.Repeat(" ", maxBody+1), "413"},
		"unknown value":      {"PUT /actions", `{"action_type": "Reset"}`, "unknown variant `Reset`"},
		"unknown path":       {"PUT /disks", `{}`, "Invalid request method and/or path: PUT disks."},
		"wrong method":       {"POST /entropy", `{}`, "Invalid request method"},
		"GET of nothing":     {"GET /nothing", ``, "Invalid request method"},
		"id with a hyphen":   {"PUT /drives/a-b", `{}`, "alphanumeric characters and underscores"},
		"no id":              {"PUT /drives", `{}`, "The ID cannot be empty."},
		"another id":         {"PUT /drives/a", `{"drive_id": "b", "is_root_device": false}`, "does not match the id from the body"},
		"no file":            {"PUT /drives/a", `{"drive_id": "a", "is_root_device": false, "is_read_only": true, "path_on_host": "/none"}`, "No such file or directory (os error 2)"},
		"no path":            {"PUT /drives/a", `{"drive_id": "a", "is_root_device": false}`, "Cannot create config."},
		"no kernel":          {"PUT /boot-source", `{"kernel_image_path": "/none"}`, "The kernel file cannot be opened: No such file"},
		"long command line":  {"PUT /boot-source", `{"kernel_image_path": "/kernel", "initrd_path": "/initramfs", "boot_args": "` + strings.Repeat("x", 2048) + `"}`, "command line is invalid"},
		"no address":         {"PUT /network-interfaces/a", `{"iface_id": "a", "host_dev_name": "t", "guest_mac": "x"}`, "MAC address"},
		"socket in the way":  {"PUT /vsock", `{"guest_cid": 3, "uds_path": "/disk"}`, "Vsock config error: Cannot create backend"},
		"start of nothing":   {"PUT /actions", goodStart, "Cannot start microvm without kernel configuration."},
		"before the start":   {"PUT /actions", `{"action_type": "SendCtrlAltDel"}`, preBoot},
	} {
		t.Run(name, func(t *testing.T) {
			got := newMonitor(t).ask(t, tt.request, tt.body)
			if !strings.Contains(got, tt.want) || (strings.HasPrefix(got, "400") && !strings.Contains(got, `{"fault_message":"`)) {
				t.Errorf("got %s, want something with %q", got, tt.want)
			}
		})
	}
}

// TestOrder: what comes too late, twice or too often is refused.
func TestOrder(t *testing.T) {
	m := newMonitor(t)
	for _, tt := range []struct{ request, body, want string }{
		{"GET /", "", "Not started"},
		{"PUT /metrics", `{"metrics_path": "/metrics"}`, "204"},
		{"PUT /metrics", `{"metrics_path": "/metrics"}`, "Reinitialization of metrics not allowed."},
		{"PUT /boot-source", `{"kernel_image_path": "/bzimage", "initrd_path": "/initramfs"}`, "204"},
		{"PUT /actions", goodStart, "invalid kernel image"},
		{"PUT /boot-source", goodBoot, "204"},
		{"PUT /actions", goodStart, "204"},
		{"GET /", "", "Running"},
		{"PUT /actions", goodStart, postBoot},
		{"PUT /boot-source", goodBoot, postBoot},
		{"PUT /logger", `{}`, postBoot},
		{"PUT /actions", `{"action_type": "FlushMetrics"}`, "204"},
	} {
		if got := m.ask(t, tt.request, tt.body); !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: got %s, want something with %q", tt.request, tt.body, got, tt.want)
		}
	}
}

func TestTooManyDevices(t *testing.T) {
	for devices, want := range map[int]string{maxDevices: "204", maxDevices + 1: "Could not attach device"} {
		m := newMonitor(t)
		for i := range devices {
			body := fmt.Sprintf(`{"drive_id": "d%d", "path_on_host": "/disk", "is_root_device": false, "is_read_only": true}`, i)
			if got := m.ask(t, fmt.Sprint("PUT /drives/d", i), body); got != "204" {
				t.Fatal(got)
			}
		}
		m.ask(t, "PUT /boot-source", goodBoot)
		if got := m.ask(t, "PUT /actions", goodStart); !strings.Contains(got, want) {
			t.Errorf("%d devices: got %s", devices, got)
		}
	}
}

// TestHostConnects to a port of the guest, as the real one's protocol on its socket has it.
func TestHostConnects(t *testing.T) {
	m := newMonitor(t)
	for request, body := range map[string]string{
		"PUT /vsock": `{"guest_cid": 3, "uds_path": "/v"}`, "PUT /boot-source": goodBoot,
	} {
		if got := m.ask(t, request, body); got != "204" {
			t.Fatal(got)
		}
	}
	if got := m.ask(t, "PUT /actions", goodStart); got != "204" {
		t.Fatal(got)
	}
	for command, want := range map[string]string{"HELLO 52\n": "", "CONNECT 53\n": "", "CONNECT x\n": ""} {
		if got := talk(t, command); got != want {
			t.Errorf("%q: got %q", command, got)
		}
	}
	deadline := 200
	got := ""
	for got == "" && deadline > 0 { // until the guest listens
		got = talk(t, "CONNECT 52\nhello\n")
		deadline--
	}
	if got != "OK 1073741824\nhello\n" {
		t.Errorf("got %q", got)
	}
	if code := <-m.over; code != 0 {
		t.Errorf("ended with %d", code)
	}
}

func talk(t *testing.T, what string) string {
	t.Helper()
	conn, err := net.Dial("unix", "./v")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, what); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn) // hanging up with something unread is an error, and an answer
	return string(answer)
}

func TestJailerArguments(t *testing.T) {
	program := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(program, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	good := []string{"--id", "vm-1", "--exec-file", program, "--uid", "1", "--gid", "2", "--chroot-base-dir", t.TempDir()}
	if o, err := parseJailer(append(good, "--", "--api-sock", "/x")); err != nil || len(o.rest) != 2 {
		t.Errorf("got %+v, %v", o, err)
	}
	for name, args := range map[string][]string{
		"unknown option": append(good, "--memory", "1"), "no value": append(good, "--netns"), "nothing": nil,
		"bad id": append(good, "--id", "a.b"), "bad uid": append(good, "--uid", "x"), "no program": append(good, "--exec-file", "/none"),
		"cgroup outside": append(good, "--parent-cgroup", "../x"), "unknown limit": append(good, "--resource-limit", "core=0"),
		"no base": append(good, "--chroot-base-dir", "/none"), "another program": append(good, "--exec-file", "/bin/sh"),
	} {
		if _, err := parseJailer(args); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
