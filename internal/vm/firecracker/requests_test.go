package firecracker

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var fullSpec = vm.Spec{
	ID: "web-1", VCPUs: 2, MemoryMiB: 512, NIC: &vm.NIC{Tap: "pin0", MAC: "02:00:00:00:00:01"},
	Netns: "/run/pinnace/netns/dev", UID: 870001, GID: 870002, Cgroup: "pinnace/web-1.3",
	Disks: []vm.Disk{
		{ID: "meta", Path: "/x", ReadOnly: true},
		{ID: "scratch", Path: "/y"},
		{ID: "volume", Path: "/z", Durable: true},
	},
}

// TestRequests compares all that a monitor is told, in its order.
func TestRequests(t *testing.T) {
	for name, spec := range map[string]vm.Spec{"full": fullSpec, "smallest": {ID: "m", VCPUs: 1, MemoryMiB: 96}} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			for _, r := range requests(spec) {
				body, err := json.MarshalIndent(r.body, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&got, "PUT %s\n%s\n\n", r.path, body)
			}
			wantGolden(t, "requests-"+name, got.String())
		})
	}
}

func TestJailerArguments(t *testing.T) {
	for version, spec := range map[int]vm.Spec{2: fullSpec, 1: fullSpec, 0: {UID: 1, GID: 2}} {
		t.Run(fmt.Sprint("cgroup version ", version), func(t *testing.T) {
			args := jailerArguments("/var/lib/pinnace/jails", "/usr/bin/firecracker", "vm-0123456789abcdef", spec, version)
			got := strings.ReplaceAll(strings.Join(args, "\n"), "\n--", "\n\n--") + "\n"
			wantGolden(t, fmt.Sprintf("jailer-cgroup-v%d", version), got)
		})
	}
}

func wantGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := "testdata/" + name + ".txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestCommandLineFits(t *testing.T) {
	for arch, devices := range maxDevices {
		if n := commandLineLength(devices); arch == "amd64" && n > maxCommandLine {
			t.Errorf("%s: with %d devices the command line may have %d bytes", arch, devices, n)
		}
	}
}

func TestJailID(t *testing.T) {
	if maxJailID != 55 {
		t.Errorf("the longest id has %d bytes, and 55 is what the address of a socket leaves in the jailer's default directory", maxJailID)
	}
	a, b := newJailID(), newJailID()
	if len(a) > maxJailID || a == b {
		t.Errorf("got %q and %q", a, b)
	}
}

func TestVersions(t *testing.T) {
	for out, want := range map[string]string{
		"Firecracker v1.15.1\n\n":         "1.15.1",
		"Jailer v1.16.0-dev\n":            "1.16.0-dev",
		"Firecracker v2.0.0":              "2.0.0",
		"Firecracker v1.15\n":             "",
		"firecracker 1.15.1":              "",
		"QEMU emulator version 7.2":       "",
		"Firecracker v1.15.1; rm -rf /\n": "",
		"":                                "",
	} {
		v, err := parseVersion(out)
		if (err == nil) != (want != "") || (err == nil && v.String() != want) {
			t.Errorf("%q: got %v, %v", out, v, err)
		}
	}
	for text, old := range map[string]bool{
		"1.15.1": false, "1.15.2": false, "1.16.0-dev": false, "2.0.0": false, "1.15.0": true, "1.15.1-dev": true, "1.14.9": true, "0.99.99": true,
	} {
		v, err := parseVersion("Firecracker v" + text + "\n")
		if err != nil || v.olderThan(oldest) != old {
			t.Errorf("%s: older is %v, %v", text, !old, err)
		}
	}
}
