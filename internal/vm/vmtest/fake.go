package vmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// fakeMaxDisks is as many as QEMU's microvm takes.
const fakeMaxDisks = 22

// A Guest plays the software of one machine of a Fake. It talks through g's ports until it returns how the
// machine ends; when ctx ends the machine was killed, and it has to return.
type Guest func(ctx context.Context, g *FakeGuest) End

// An End is how a fake guest ends its machine.
type End struct {
	// Panic is the message of a kernel panic, or empty for an orderly reset.
	Panic string
	// Code is the monitor's exit status: not 0 when the monitor itself failed.
	Code int
	// OOM lets the host's kernel have killed the monitor.
	OOM bool
}

// A Fake is a driver without a hypervisor: each machine is a goroutine that plays the guest. It checks specs as
// a real driver does, down to the files, and passes the conformance suite. Machines have no process, so their
// records identify none: they live as long as the Fake, which stands for the host, and agents come and go.
type Fake struct {
	guest Guest

	mu       sync.Mutex
	started  []vm.Spec               // guarded by mu
	machines map[string]*fakeMachine // guarded by mu: the newest of each id, until somebody has heard of its end
}

var _ vm.Driver = (*Fake)(nil)

// NewFake returns a driver whose machines run guest. For one that speaks the guest's protocol see package
// guesttest in internal/guest.
func NewFake(guest Guest) *Fake { return &Fake{guest: guest, machines: map[string]*fakeMachine{}} }

// Started returns the specs of all machines that were started, in order.
func (f *Fake) Started() []vm.Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]vm.Spec(nil), f.started...)
}

// Name implements vm.Driver.
func (f *Fake) Name() string { return "fake" }

// Probe implements vm.Driver.
func (f *Fake) Probe(ctx context.Context) (vm.Capabilities, error) {
	return vm.Capabilities{
		Driver: f.Name(), Version: "1", Accelerator: "tcg", Reason: "nothing is accelerated where nothing runs",
		MaxDisks: fakeMaxDisks, OverheadMiB: 1,
	}, ctx.Err()
}

// Start implements vm.Driver.
func (f *Fake) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkSpec(spec); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	f.mu.Lock()
	f.started = append(f.started, spec)
	f.mu.Unlock()
	// A machine outlives the context of its start.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	boot, err := vm.HostBootID()
	if err != nil {
		cancel()
		return nil, err
	}
	m := &fakeMachine{
		driver: f,
		record: vm.Record{ID: spec.ID, Driver: f.Name(), Dir: spec.Dir, Cgroup: spec.Cgroup, BootID: boot, StartedAt: time.Now()},
		kill:   cancel,
		ended:  make(chan struct{}),
		ports:  map[vm.Channel]*Port{vm.Control: newPort(), vm.Logs: newPort()},
	}
	g := &FakeGuest{Spec: spec, Control: m.ports[vm.Control], Logs: m.ports[vm.Logs], Console: &m.console}
	if m.kept, err = dup(spec.Kept); err != nil {
		cancel()
		return nil, err
	}
	if err := m.record.Write(); err != nil {
		cancel()
		m.letGo()
		return nil, err
	}
	f.mu.Lock()
	f.machines[spec.ID] = m
	f.mu.Unlock()
	go m.run(run, f.guest, g)
	return m, nil
}

// Adopt implements vm.Driver.
func (f *Fake) Adopt(ctx context.Context, r vm.Record) (vm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.machines[r.ID]
	if m == nil || m.record.BootID != r.BootID || !m.record.StartedAt.Equal(r.StartedAt) {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, vm.ErrNotOurs)
	}
	return m, nil
}

// forget drops a machine whose end somebody has heard of, and what it left.
func (f *Fake) forget(m *fakeMachine) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.machines[m.record.ID] == m {
		delete(f.machines, m.record.ID)
		_ = vm.RemoveRecord(m.record.Dir) // a test that looks will find it
	}
}

// Kill ends the newest machine of an id, as somebody else on the host could.
func (f *Fake) Kill(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.machines[id]; m != nil {
		m.kill()
	}
}

// KillAll ends every machine that runs, as a crash of the host would.
func (f *Fake) KillAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.machines {
		m.kill()
	}
}

// checkSpec refuses what a real driver would refuse.
func checkSpec(spec vm.Spec) error {
	if err := spec.Validate(fakeMaxDisks); err != nil {
		return err
	}
	files := map[string]string{"Kernel": spec.Kernel, "Initramfs": spec.Initramfs}
	for i, d := range spec.Disks {
		files[fmt.Sprintf("Disks[%d]", i)] = d.Path
	}
	for field, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return &vm.SpecError{Field: field, Reason: err.Error()}
		}
		if !info.Mode().IsRegular() || info.Size() == 0 {
			return &vm.SpecError{Field: field, Reason: path + " is not a file with something in it"}
		}
	}
	return nil
}

// A FakeGuest is a machine as its guest sees it.
type FakeGuest struct {
	Spec          vm.Spec
	Control, Logs *Port
	// Console is the serial console.
	Console *vm.Console
}

type fakeMachine struct {
	driver  *Fake
	record  vm.Record
	console vm.Console
	ports   map[vm.Channel]*Port
	kill    context.CancelFunc
	kept    []*os.File

	ended chan struct{}
	exit  vm.Exit // set before ended is closed
}

var _ vm.Machine = (*fakeMachine)(nil)

// run plays the machine until its guest returns.
func (m *fakeMachine) run(ctx context.Context, guest Guest, g *FakeGuest) {
	defer m.kill()
	// Whatever the guest is waiting for on a port, a kill ends it.
	stop := context.AfterFunc(ctx, m.unplug)
	end := guest(ctx, g)
	stop()
	m.unplug()
	switch {
	case ctx.Err() != nil:
		m.exit.Code, m.exit.Signal, m.exit.Killed = -1, syscall.SIGKILL, true
	case end.OOM:
		m.exit.Code, m.exit.Signal, m.exit.OOM = -1, syscall.SIGKILL, true
	default:
		m.exit.Code = end.Code
		if end.Panic != "" {
			fmt.Fprintf(&m.console, "[    1.000000] Kernel panic - not syncing: %s\r\n", end.Panic)
		}
	}
	m.exit.ConsoleTail, m.exit.Panic = m.console.Tail(), m.console.Panic()
	if g.Spec.Console != "" {
		if err := os.WriteFile(g.Spec.Console, []byte(m.exit.ConsoleTail), 0o600); err != nil {
			m.exit.Stderr = err.Error()
		}
	}
	m.letGo()
	close(m.ended)
}

// dup returns what a process that inherits files has of them.
func dup(files []*os.File) ([]*os.File, error) {
	var all []*os.File
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, os.NewFile(uintptr(fd), f.Name()))
	}
	return all, nil
}

func (m *fakeMachine) letGo() {
	for _, f := range m.kept {
		f.Close()
	}
}

func (m *fakeMachine) unplug() {
	for _, p := range m.ports {
		_ = p.Close() // never fails
	}
}

// Dial implements vm.Machine.
func (m *fakeMachine) Dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	p, ok := m.ports[ch]
	if !ok {
		return nil, fmt.Errorf("no channel %q", ch)
	}
	conn, err := p.connect(ctx)
	if errors.Is(err, errUnplugged) {
		err = vm.ErrEnded
	}
	if err != nil {
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.record.ID, err)
	}
	return conn, nil
}

// Kill implements vm.Machine.
func (m *fakeMachine) Kill() error {
	m.kill()
	return nil
}

// Wait implements vm.Machine.
func (m *fakeMachine) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-m.ended:
		m.driver.forget(m)
		return m.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

// PID implements vm.Machine. No process has the number 0.
func (m *fakeMachine) PID() int { return 0 }

// Record implements vm.Machine.
func (m *fakeMachine) Record() vm.Record { return m.record }

// Release implements vm.Machine. Connections are the caller's to close.
func (m *fakeMachine) Release() {}

// FakeSpec returns a spec that a Fake takes, with files that have something in them in a directory of the
// test.
func FakeSpec(dir, id string) (vm.Spec, error) {
	spec := vm.Spec{
		ID: id, Dir: filepath.Join(dir, id), VCPUs: 1, MemoryMiB: 128, UID: 1, GID: 1,
		Kernel: filepath.Join(dir, "vmlinuz"), Initramfs: filepath.Join(dir, "initramfs"),
	}
	for _, path := range []string{spec.Kernel, spec.Initramfs} {
		if err := os.WriteFile(path, []byte("fake\n"), 0o600); err != nil {
			return vm.Spec{}, err
		}
	}
	return spec, os.Mkdir(spec.Dir, 0o700)
}
