//go:build linux

package pid1

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

func TestModulesOf(t *testing.T) {
	const list = "early virtio_console.ko\nlate virtio_blk.ko\n\nnonsense\nearly virtio_mmio.ko extra\nearly /abs/x.ko\n"
	if got, want := modulesOf(list, "early"), []string{"virtio_console.ko", "/abs/x.ko"}; !slices.Equal(got, want) {
		t.Errorf("early: got %q, want %q", got, want)
	}
	if got, want := modulesOf(list, "late"), []string{"virtio_blk.ko"}; !slices.Equal(got, want) {
		t.Errorf("late: got %q, want %q", got, want)
	}
	if err := loadModules(filepath.Join(t.TempDir(), "load"), "early"); err != nil {
		t.Errorf("without a list: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"": 15, "SIGTERM": 15, "TERM": 15, "sigterm": 15, "15": 15, "QUIT": 3, "SIGKILL": 9, "SIGWINCH": 28,
		"SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX": 64, "RTMAX-1": 63, "37": 37,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "65", "SIGNOTHING", "RTMIN+31", "RTMIN+x", "SIG", "RTMAX+1"} {
		if got, err := parseSignal(text); err == nil {
			t.Errorf("%q: got %d", text, got)
		}
	}
	if got := signalName(unix.SIGSEGV); got != "SIGSEGV" {
		t.Errorf("name: %q", got)
	}
	if got := signalName(50); got != "signal 50" {
		t.Errorf("name: %q", got)
	}
}

func TestListDisks(t *testing.T) {
	dir := t.TempDir()
	for name, serial := range map[string]string{"vda": "meta\n", "vdb": "", "vdaa": "last", "vdz": "x", "sda": "no"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if serial != "" {
			if err := os.WriteFile(filepath.Join(dir, name, "serial"), []byte(serial), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := listDisks(dir)
	want := []blockDevice{{"vda", "meta"}, {"vdb", ""}, {"vdz", "x"}, {"vdaa", "last"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestMatchDisks(t *testing.T) {
	named := []blockDevice{{"vda", "scratch"}, {"vdb", "meta"}}
	unnamed := []blockDevice{{"vda", ""}, {"vdb", ""}}
	numbered := []blockDevice{{"vda", "6476905243312"}, {"vdb", "6476905243313"}}
	for _, tc := range []struct {
		name    string
		disks   []guest.Disk
		devices []blockDevice
		want    []string
	}{
		{"by serial", []guest.Disk{{Serial: "meta", Order: 0}, {Serial: "scratch", Order: 1}}, named, []string{"/dev/vdb", "/dev/vda"}},
		{"by order", []guest.Disk{{Serial: "meta", Order: 0}, {Serial: "scratch", Order: 1}}, unnamed, []string{"/dev/vda", "/dev/vdb"}},
		{"by order where the VMM makes serials", []guest.Disk{{Serial: "meta", Order: 1}, {Serial: "scratch", Order: 0}}, numbered, []string{"/dev/vdb", "/dev/vda"}},
		{"by order without a serial", []guest.Disk{{Order: 1}}, named, []string{"/dev/vdb"}},
		{"another serial is not it", []guest.Disk{{Serial: "data", Order: 0}}, named, nil},
		{"not there yet", []guest.Disk{{Order: 2}}, unnamed, nil},
		{"negative", []guest.Disk{{Order: -1}}, unnamed, nil},
	} {
		got, err := matchDisks(tc.disks, tc.devices)
		if (err != nil) != (tc.want == nil) || !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, %v; want %v", tc.name, got, err, tc.want)
		}
	}
}

func TestLayerOptions(t *testing.T) {
	disks := []string{"/dev/vda", "/dev/vdb"}
	got, err := layerOptions([]guest.LayerSlot{{Disk: 1}, {Disk: 0, Partition: 12}}, disks)
	if want := "device=/dev/vdb,device=/dev/vda12"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if got, err := layerOptions(nil, disks); err != nil || got != "" {
		t.Errorf("no layers: %q, %v", got, err)
	}
	if got, err := layerOptions(slices.Repeat([]guest.LayerSlot{{Disk: 1, Partition: 120}}, 128), disks); err != nil {
		t.Errorf("128 layers: %d bytes, %v", len(got), err)
	}
	for _, bad := range []guest.LayerSlot{{Disk: 2}, {Disk: -1}, {Disk: 0, Partition: -1}} {
		if got, err := layerOptions([]guest.LayerSlot{bad}, disks); err == nil {
			t.Errorf("%+v: got %q", bad, got)
		}
	}
}

func TestCheckErofs(t *testing.T) {
	image := make([]byte, 4096)
	copy(image[superblockAt:], "\xe2\xe1\xf5\xe0")
	copy(image[superblockAt+erofsUUIDAt:], "0123456789abcdef")
	node := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(node, image, 0o644); err != nil {
		t.Fatal(err)
	}
	for uuid, want := range map[string]string{
		"": "", "30313233-3435-3637-3839-616263646566": "",
		"30313233-3435-3637-3839-616263646567": "expected 3031", "nonsense": "not a UUID", "30": "not a UUID",
	} {
		err := checkErofs(node, uuid)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", uuid, err)
		}
	}
	if err := os.WriteFile(node, make([]byte, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := checkErofs(node, ""); err == nil {
		t.Error("zeros are no EROFS")
	}
}

func TestMemoryAndPIDs(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct{ total, available, reserve, want int64 }{
		{92 * mib, 0, 0, 76 * mib},
		{92 * mib, 0, 32 * mib, 60 * mib},
		{60 * mib, 0, 100 * mib, 16 * mib},
		{0, 0, 0, 16 * mib},
		{92 * mib, 42 * mib, 0, 34 * mib},
		{92 * mib, 90 * mib, 0, 76 * mib},
		{92 * mib, 70 * mib, 40 * mib, 52 * mib},
		{60 * mib, 12 * mib, 0, 16 * mib},
	} {
		if got := memoryMax(tc.total, tc.available, tc.reserve); got != tc.want {
			t.Errorf("memoryMax(%d, %d, %d) = %d, want %d", tc.total, tc.available, tc.reserve, got, tc.want)
		}
	}
	for meminfo, want := range map[string]int64{
		"MemTotal:       88664 kB\nMemFree:        41028 kB\nMemAvailable:   40704 kB\n": 40704 << 10,
		"MemTotal: 88664 kB\n": 0, "MemAvailable: x kB\n": 0, "MemAvailable: 99999999999999999999 kB\n": 0, "MemAvailable: 12\n": 0, "": 0,
	} {
		if got := availableIn(meminfo); got != want {
			t.Errorf("available in %q: %d, want %d", meminfo, got, want)
		}
	}
	for _, tc := range []struct{ total, asked, want int64 }{
		{92 * mib, 0, 1472}, {92 * mib, 77, 77}, {8 * mib, 0, 512}, {1 << 40, 0, 30000},
	} {
		if got := pidsMax(tc.total, tc.asked); got != tc.want {
			t.Errorf("pidsMax(%d, %d) = %d, want %d", tc.total, tc.asked, got, tc.want)
		}
	}
	const events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n"
	if n, err := counterIn(events, "oom_kill"); n != 3 || err != nil {
		t.Errorf("oom_kill: %d, %v", n, err)
	}
	if _, err := counterIn(events, "oom_kil"); err == nil {
		t.Error("a key that is not there")
	}
}

func TestEtcFiles(t *testing.T) {
	got := etcFiles("web-1", &guest.Network{
		Addresses: []string{"10.100.0.2/16", "fd00::2/64"}, DNS: []string{"10.100.0.1", "fd00::1"}, Search: []string{"internal", "x.internal"},
		Hosts: []guest.HostEntry{{Address: "10.101.0.1", Names: []string{"db", "db.internal"}}},
	})
	if got["hostname"] != "web-1\n" {
		t.Errorf("hostname %q", got["hostname"])
	}
	if want := "search internal x.internal\nnameserver 10.100.0.1\nnameserver fd00::1\n"; got["resolv.conf"] != want {
		t.Errorf("resolv.conf %q", got["resolv.conf"])
	}
	for _, line := range []string{"127.0.0.1\tlocalhost", "10.100.0.2\tweb-1", "fd00::2\tweb-1", "10.101.0.1\tdb db.internal"} {
		if !slices.Contains(strings.Split(got["hosts"], "\n"), line) {
			t.Errorf("hosts has no %q:\n%s", line, got["hosts"])
		}
	}
	alone := etcFiles("web-1", nil)
	if _, ok := alone["resolv.conf"]; ok || !strings.Contains(alone["hosts"], "127.0.1.1\tweb-1\n") {
		t.Errorf("without a network: %q", alone)
	}
}

func TestFollowLinks(t *testing.T) {
	dir := t.TempDir()
	for name, target := range map[string]string{
		"dangling": "../run/x", "chain": "dangling", "absolute": "/run/abs", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"missing": dir + "/missing", "dangling": filepath.Dir(dir) + "/run/x", "chain": filepath.Dir(dir) + "/run/x", "absolute": "/run/abs",
	} {
		if got, err := followLinks(filepath.Join(dir, name)); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := followLinks(filepath.Join(dir, "loop")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("loop: got %q, %v", got, err)
	}
}

func TestMountTargets(t *testing.T) {
	const mounts = "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\ntmpfs /run/with\\040blank tmpfs rw 0 0\n" +
		"devtmpfs /dev devtmpfs rw 0 0\nshm /dev/shm tmpfs rw 0 0\nbroken\nx /odd\\9 x x\n"
	if got, want := mountTargets(mounts), []string{"/run/with blank", "/dev/shm", `/odd\9`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestNetlinkMessage compares with what iproute2 sends for "ip link set dev X up mtu 1400", interface 2.
func TestNetlinkMessage(t *testing.T) {
	body := make([]byte, unix.SizeofIfInfomsg)
	body[4], body[8], body[12] = 2, unix.IFF_UP, unix.IFF_UP
	body = appendAttr(body, unix.IFLA_MTU, []byte{0x78, 5, 0, 0})
	got := hex.EncodeToString(netlinkMessage(unix.RTM_NEWLINK, 0, 7, body))
	const want = "28000000" + "1000" + "0500" + "07000000" + "00000000" + // length, type, flags, seq, pid
		"00000000" + "02000000" + "01000000" + "01000000" + // family, index, flags, change
		"0800" + "0400" + "78050000"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAckIn(t *testing.T) {
	answer := func(code int32, seq byte) []byte {
		b := make([]byte, 36)
		b[4], b[8] = unix.NLMSG_ERROR, seq
		b[16], b[17], b[18], b[19] = byte(code), byte(code>>8), byte(code>>16), byte(code>>24)
		return b
	}
	if done, err := ackIn(answer(0, 3), 3); !done || err != nil {
		t.Errorf("success: %v, %v", done, err)
	}
	if done, err := ackIn(answer(-int32(unix.EEXIST), 3), 3); !done || !errors.Is(err, unix.EEXIST) {
		t.Errorf("failure: %v, %v", done, err)
	}
	for name, b := range map[string][]byte{"another request": answer(0, 2), "short": {1, 2, 3}, "empty": nil} {
		if done, _ := ackIn(b, 3); done {
			t.Errorf("%s: taken for the answer", name)
		}
	}
}

func TestPlanNetwork(t *testing.T) {
	p, err := planNetwork(guest.Network{Addresses: []string{"10.0.0.2/24"}, Gateway4: "10.0.0.1", Gateway6: "fe80::1"})
	if err != nil || len(p.addresses) != 1 || len(p.gateways) != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []guest.Network{{Addresses: []string{"10.0.0.2"}}, {Gateway4: "x"}, {Gateway6: "10.0.0.0/8"}} {
		if _, err := planNetwork(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if got := lastAddress(netip.MustParsePrefix("10.100.3.2/20")); got.String() != "10.100.15.255" {
		t.Errorf("broadcast %s", got)
	}
}

func TestFindInterface(t *testing.T) {
	dir := t.TempDir()
	for name, files := range map[string][2]string{"lo": {"00:00:00:00:00:00", "1"}, "eth0": {"52:54:00:aa:bb:cc\n", "2\n"}} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, file := range []string{"address", "ifindex"} {
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(files[i]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, mac := range []string{"", "52:54:00:AA:BB:CC"} {
		if got, err := findInterface(dir, mac); err != nil || got != 2 {
			t.Errorf("%q: %d, %v", mac, got, err)
		}
	}
	if got, err := findInterface(dir, "52:54:00:00:00:00"); err == nil {
		t.Errorf("another address: %d", got)
	}
}

func TestFindPort(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"vport0p1": "pinnace.control\n", "vport0p2": "pinnace.logs"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "name"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := findPort(dir, guest.LogsChannel); err != nil || got != "/dev/vport0p2" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := findPort(dir, "other"); err == nil {
		t.Errorf("got %q", got)
	}
}
