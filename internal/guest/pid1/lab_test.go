//go:build linux

package pid1_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// lab boots VMs with the init of this tree, by hand: the driver has a suite of its own, and PID 1 is what is tested
// here.
type lab struct {
	kernel *kernel.Kernel
	append string // to the kernel's command line
	dir    string // the image's disks: meta, first, pack
	uuid   string
}

const initPackage = "github.com/pinnacehq/pinnace/cmd/pinnace-init"

// newLab builds what all VMs of a test share, or skips when something is missing.
func newLab(t *testing.T) *lab {
	t.Helper()
	source := vmtest.NeedGuests(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4: apt-get install e2fsprogs")
	}
	k := vmtest.Prepare(t, source, vmtest.Build(t, initPackage))
	program, err := os.ReadFile(vmtest.Build(t, "./testdata/workload"))
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{kernel: k, dir: vmtest.Dir(t), uuid: "0b1a2c3d-4e5f-4061-8273-94a5b6c7d8e9"}
	l.writeImage(t, program)
	return l
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// machine is a running VM with the host's end of its session.
type machine struct {
	t       *testing.T
	host    *guest.Host
	session chan error    // gets why the session is over
	cut     func()        // ends the session as a crash of the host's process would
	kill    func()        // kills QEMU, and waits for its end
	dir     string        // of the channels' sockets
	scratch string        // file of the scratch disk
	console *bytes.Buffer // read after ended
	ended   chan struct{} // closed when QEMU has ended
	err     error         // of QEMU, after ended

	mu    sync.Mutex
	lines []guest.Line
}

const mac = "52:54:00:12:34:56"

const bootTimeout = 60 * time.Second

// boot starts a VM with a scratch disk of 128 MiB made from a smaller template, and files as volumes: volume0 and so on.
func (l *lab) boot(t *testing.T, volumes ...string) *machine {
	t.Helper()
	dir := vmtest.Dir(t)
	m := &machine{t: t, console: new(bytes.Buffer), ended: make(chan struct{}), scratch: filepath.Join(dir, "scratch")}
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", m.scratch, "32M")
	if err := os.Truncate(m.scratch, 128<<20); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", "microvm,accel=tcg,isa-serial=on,auto-kernel-cmdline=off", "-cpu", "max", "-m", "128", "-smp", "1",
		"-kernel", l.kernel.Path, "-initrd", l.kernel.Initramfs, "-append", kernelArgs() + l.append, "-serial", "stdio",
		"-device", "virtio-serial-device,max_ports=4",
	}
	for _, name := range []string{guest.ControlChannel, guest.LogsChannel} {
		args = append(args, "-chardev", "socket,id="+name+",path="+dir+"/"+name+",server=on,wait=off",
			"-device", "virtserialport,chardev="+name+",name="+name)
	}
	type disk struct{ name, file, options string }
	disks := []disk{
		{"meta", l.dir + "/meta", ",read-only=on"},
		{"first", l.dir + "/first", ",read-only=on"},
		{"pack", l.dir + "/pack", ",read-only=on"},
		{"scratch", m.scratch, ""},
	}
	for i, file := range volumes {
		disks = append(disks, disk{fmt.Sprint("volume", i), file, ",cache=writeback,werror=report,rerror=report"})
	}
	for _, d := range disks {
		args = append(args, "-drive", "if=none,format=raw,id="+d.name+",file="+d.file+d.options,
			"-device", "virtio-blk-device,drive="+d.name+",serial="+d.name)
	}
	args = append(args, "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-device,netdev=net,mac="+mac)
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = m.console, m.console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.err = cmd.Wait(); close(m.ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.ended
		m.log()
	})
	m.dir, m.kill = dir, func() { _ = cmd.Process.Kill(); <-m.ended }
	m.converse(guest.Options{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // ends the session
		if err := <-m.session; errors.Is(err, guest.ErrProtocol) {
			t.Error(err)
		}
	})
	return m
}

// converse begins a session with the guest.
func (m *machine) converse(opts guest.Options) {
	m.t.Helper()
	control, logs := dial(m.t, m.dir+"/"+guest.ControlChannel, m.ended), dial(m.t, m.dir+"/"+guest.LogsChannel, m.ended)
	opts.Logs = m.keep
	ctx, cancel := context.WithCancel(context.Background())
	host, session := guest.NewHost(control, logs, opts), make(chan error, 1)
	m.host, m.session, m.cut = host, session, cancel
	go func() { session <- host.Run(ctx) }()
}

// log shows what a failed test needs.
func (m *machine) log() {
	if !m.t.Failed() {
		return
	}
	m.t.Logf("console:\n%s", m.console)
	m.t.Logf("stdout:\n%s", m.text(guest.StreamStdout))
	m.t.Logf("stderr:\n%s", m.text(guest.StreamStderr))
}

// kernelArgs has what keeps an emulated machine from hanging on its clock, and its kernel from an instruction that
// QEMU 7.2 emulates wrongly; see the driver.
func kernelArgs() string {
	return fmt.Sprintf("console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz=%d tsc=reliable no_timer_check "+
		"cryptomgr.notests random.trust_cpu=on clearcpuid=cx16", hostKHz())
}

func dial(t *testing.T, path string, ended <-chan struct{}) net.Conn {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c
		}
		select {
		case <-ended:
			t.Fatal("qemu ended at once")
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func hostKHz() int {
	src, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(src)) {
		if k, v, _ := strings.Cut(line, ":"); strings.TrimSpace(k) == "cpu MHz" {
			var mhz float64
			fmt.Sscan(strings.TrimSpace(v), &mhz)
			return int(mhz * 1000)
		}
	}
	return 2_000_000
}

func (m *machine) keep(lines []guest.Line) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range lines {
		l.Data = bytes.Clone(l.Data)
		m.lines = append(m.lines, l)
	}
	return nil
}

// text is all output of a stream so far, joined as the workload wrote it.
func (m *machine) text(stream string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out strings.Builder
	for _, l := range m.lines {
		if l.Stream != stream {
			continue
		}
		out.Write(l.Data)
		if !l.Partial {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// config is a configuration that runs argv as the image's root.
func (l *lab) config(argv ...string) guest.Config {
	return guest.Config{
		Hostname: "web-1",
		Disks: []guest.Disk{
			{Role: guest.RoleScratch, Serial: "scratch"},
			{Role: guest.RoleRootMeta, Serial: "meta", UUID: l.uuid},
			{Role: guest.RoleLayer, Order: 1, Serial: "first"},
			{Role: guest.RolePack, Serial: "pack"},
		},
		LayerSlots: []guest.LayerSlot{{Disk: 2}, {Disk: 3, Partition: 2}},
		Network: &guest.Network{
			MAC: mac, Addresses: []string{"10.100.0.2/16", "fd00:7069:6e6e:100::2/64"},
			Gateway4: "10.100.0.1", Gateway6: "fd00:7069:6e6e:100::1", DNS: []string{"10.100.0.1"}, Search: []string{"internal"},
		},
		Process: guest.Process{Entrypoint: []string{"/bin/workload"}, Cmd: argv},
	}
}

func (m *machine) start(c guest.Config) guest.Started {
	m.t.Helper()
	started, err := m.tryStart(c)
	if err != nil {
		m.t.Fatal(err)
	}
	return started
}

func (m *machine) tryStart(c guest.Config) (guest.Started, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	return m.host.Configure(ctx, c)
}

// exit waits for the report.
func (m *machine) exit() guest.Exit {
	m.t.Helper()
	select {
	case e := <-m.host.Exit():
		return e
	case <-m.host.Done():
		m.t.Fatal("the session ended without a report")
	case <-time.After(bootTimeout):
		m.t.Fatal("no report")
	}
	return guest.Exit{}
}

// end acknowledges the report and waits for the end of the VM.
func (m *machine) end() {
	m.t.Helper()
	if err := m.host.AckExit(context.Background()); err != nil {
		m.t.Fatal(err)
	}
	select {
	case <-m.ended:
	case <-time.After(20 * time.Second):
		m.t.Fatal("the VM did not end")
	}
	if m.err != nil {
		m.t.Errorf("qemu: %v", m.err)
	}
	// Without a journal, a file system that was not made read-only is marked as not clean.
	if out := run(m.t, "dumpe2fs", "-h", m.scratch); !strings.Contains(out, "Filesystem state:         clean") {
		m.t.Errorf("the scratch disk is not clean:\n%s", out)
	}
}

// awaitText waits until a stream has got as far as prefix.
func (m *machine) awaitText(stream, prefix string) {
	m.t.Helper()
	deadline := time.Now().Add(bootTimeout)
	for !strings.HasPrefix(m.text(stream), prefix) {
		select {
		case <-m.host.Done():
			m.t.Fatalf("the session ended before %q", prefix)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("no %q in %q", prefix, m.text(stream))
		}
	}
}

// facts are what the workload's sub-command of that name printed.
type facts struct {
	t      *testing.T
	values map[string]any
}

func (m *machine) facts() facts {
	m.t.Helper()
	f := facts{t: m.t}
	dec := json.NewDecoder(strings.NewReader(m.text(guest.StreamStdout)))
	dec.UseNumber()
	if err := dec.Decode(&f.values); err != nil {
		m.t.Fatalf("facts: %v\n%s", err, m.text(guest.StreamStdout))
	}
	return f
}

// of are the facts about one thing among them.
func (f facts) of(name string) facts {
	f.t.Helper()
	values, ok := f.values[name].(map[string]any)
	if !ok {
		f.t.Errorf("nothing is said of %s", name)
	}
	return facts{f.t, values}
}

func (f facts) number(name string) int64 {
	f.t.Helper()
	n, err := strconv.ParseInt(f.text(name), 10, 64)
	if err != nil {
		f.t.Errorf("%s: %v", name, err)
	}
	return n
}

func (f facts) hex(name string) int64 {
	f.t.Helper()
	n, err := strconv.ParseInt(f.text(name), 16, 64)
	if err != nil {
		f.t.Errorf("%s: %v", name, err)
	}
	return n
}

func (f facts) text(name string) string { return fmt.Sprint(f.values[name]) }

func (f facts) want(name, want string) {
	f.t.Helper()
	if got := f.text(name); got != want {
		f.t.Errorf("%s: got %q, want %q", name, got, want)
	}
}

func (f facts) contains(name, want string) {
	f.t.Helper()
	if got := f.text(name); !strings.Contains(got, want) {
		f.t.Errorf("%s: got %q, which has no %q", name, got, want)
	}
}

func markNames(marks []guest.Mark) []string {
	names := make([]string, len(marks))
	for i, m := range marks {
		names[i] = m.Name
	}
	return names
}
