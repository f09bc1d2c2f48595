package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// aBoot is one pair of boots: of a machine with the init that does nothing, and of an app.
type aBoot struct {
	idle     time.Duration // exec of QEMU to its end
	first200 time.Duration // exec of QEMU to the first 200 of the app
	// In the guest, from the start of init: to the start of the workload's process, and how much of that it waited for
	// the host.
	exec, waited time.Duration
}

// benchCgroup is above the cgroups of the test's own machines, as the agent has one above those of its.
const benchCgroup = "pinnace/bench-vm"

// bootBench boots in turn what is compared.
type bootBench struct {
	lab    *lab
	t      *testing.T
	idle   *kernel.Kernel
	driver vm.Driver
	refs   []string
	boots  int
}

func newBootBench(t *testing.T) *bootBench {
	b := &bootBench{t: t, lab: newLab(t, "--log-level", "debug")}
	source, err := kernel.Find(kernels)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h, err := cgroup.Find(); err == nil {
			if err := h.Remove(benchCgroup); err != nil {
				t.Error(err)
			}
		}
	})
	b.idle = vmtest.Prepare(t, source, vmtest.Build(t, "./idle"))
	b.driver = b.lab.ownDriver(t)
	for _, version := range []string{"1", "2"} {
		b.refs = append(b.refs, b.lab.push("hello", "v"+version, helloImage(t, version)))
	}
	return b
}

// ownDriver starts machines from the test, with the holder that the lab's agent has.
func (l *lab) ownDriver(t *testing.T) vm.Driver {
	t.Helper()
	holders, err := filepath.Glob(filepath.Join(l.dir, "data", "agent", "boot", "pinnace-holder-*"))
	if err != nil || len(holders) != 1 {
		t.Fatalf("the agent's holder: %v, %v", holders, err)
	}
	d, err := qemu.New(qemu.Options{Accel: qemu.TCG, Holder: holders[0]})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// helloImage is an image of one static program.
func helloImage(t *testing.T, version string) v1.Image {
	t.Helper()
	program, err := os.ReadFile(vmtest.Build(t, "./hello"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer(t, file{"hello", 0o755, program}))
	if err != nil {
		t.Fatal(err)
	}
	return withConfig(t, img, runtime.GOARCH, v1.Config{Entrypoint: []string{"/hello"}, Env: []string{"VERSION=" + version}})
}

const helloManifest = `schema = "v1"
name = "hello"
resources = { memory = "128MiB", disk = "64MiB" }
ports.web = { port = 8080, expose = "internal" }
rollout = { hold = "0s", boot_timeout = "2m" }
stop = { drain = "0s", timeout = "5s" }
health.ready = { type = "tcp", port = "web", interval = "1s", timeout = "1s" }
`

// machine is what a machine of the test's own is started with. It has as many disks as the app's.
func (b *bootBench) machine(k *kernel.Kernel) vm.Spec {
	b.t.Helper()
	dir := vmtest.Dir(b.t)
	spec := vm.Spec{
		ID: "own-" + filepath.Base(dir), Dir: filepath.Join(dir, "m"), Kernel: k.Path, Initramfs: k.Initramfs,
		VCPUs: 1, MemoryMiB: 128, UID: 870001, GID: 870001,
		// Like the app's: on a busy machine it is the cgroup that decides who gets the processor.
		Cgroup: filepath.Join(benchCgroup, filepath.Base(dir)), CPUMilli: 250,
	}
	if err := os.Mkdir(spec.Dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	for _, id := range []string{"meta", "layer0", "scratch"} {
		path := filepath.Join(dir, id)
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o644); err != nil {
			b.t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, vm.Disk{ID: id, Path: path, ReadOnly: id != "scratch"})
	}
	return spec
}

// bootIdle boots a machine whose init does nothing.
func (b *bootBench) bootIdle() time.Duration {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	m, err := b.driver.Start(ctx, b.machine(b.idle))
	if err != nil {
		b.t.Fatal(err)
	}
	began := processStart(b.t, m.PID())
	exit, err := m.Wait(ctx)
	took := sinceBoot() - began
	if err != nil || exit.Code != 0 || exit.Panic != "" {
		_ = m.Kill()
		b.t.Fatalf("the machine that does nothing: %v, %v\n%s", exit, err, exit.ConsoleTail)
	}
	return took
}

// bootApp stops the app and deploys another version of it.
func (b *bootBench) bootApp() aBoot {
	b.t.Helper()
	l := b.lab
	if b.boots > 0 {
		l.must("stop", "hello")
	}
	machines := filepath.Join(l.dir, "run", "agent", "vm")
	before, err := filepath.Glob(filepath.Join(machines, "*"))
	if err != nil {
		b.t.Fatal(err)
	}
	deployed := make(chan result, 1)
	ref := b.refs[b.boots%len(b.refs)]
	b.boots++
	go func() { deployed <- l.pinnace("deploy", "-f", l.manifest("hello", helloManifest), "--image", ref) }()

	pid, address := b.awaitMachine(machines, before, deployed)
	began := processStart(b.t, pid)
	first := b.await200(filepath.Join(l.dir, "run", "network", "netns", "dev"), address)
	boot := aBoot{first200: first - began}
	if r := <-deployed; r.status != 0 {
		b.t.Fatalf("deploy: %s", r)
	}
	boot.exec, boot.waited = b.guestTimes()
	return boot
}

// awaitMachine waits for a machine that is not among those before, and returns its monitor and its guest's address.
func (b *bootBench) awaitMachine(machines string, before []string, deployed chan result) (pid int, address string) {
	b.t.Helper()
	b.soon("the machine is started", func() bool {
		select {
		case r := <-deployed:
			if r.status != 0 {
				b.t.Fatalf("deploy: %s", r)
			}
			deployed <- r
		default:
		}
		now, err := filepath.Glob(filepath.Join(machines, "*"))
		if err != nil {
			b.t.Fatal(err)
		}
		for _, dir := range now {
			if slices.Contains(before, dir) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, "monitor"))
			if err != nil {
				continue
			}
			if _, err := fmt.Sscanf(string(text), "pid %d\n", &pid); err != nil {
				continue
			}
			var kept struct {
				Report struct {
					Address string `json:"address"`
				} `json:"report"`
			}
			text, err = os.ReadFile(filepath.Join(dir, "attempt.json"))
			if err != nil || json.Unmarshal(text, &kept) != nil {
				continue
			}
			address = kept.Report.Address
			return address != ""
		}
		return false
	})
	return pid, address
}

// soon waits, without taking much of the machine, for what takes seconds.
func (b *bootBench) soon(what string, check func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("in vain waited until %s\n%s", what, b.lab.out)
		}
	}
}

// await200 asks in a network namespace until it is answered, and returns when that was.
func (b *bootBench) await200(netns, address string) time.Duration {
	b.t.Helper()
	var at time.Duration
	err := inNetns(netns, func() error {
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
			_, err := ask200(net.JoinHostPort(address, "8080"), "/")
			if err == nil || time.Now().After(deadline) {
				at = sinceBoot()
				return err
			}
		}
	})
	if err != nil {
		b.t.Fatalf("no answer from %s: %v", address, err)
	}
	return at
}

// inNetns calls do on a thread that is in a network namespace.
func inNetns(path string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		ns, err := os.Open(path)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// ask200 sends one request on a connection of its own, from the calling thread.
func ask200(address, path string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, 300*time.Millisecond)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: hello\r\n\r\n", path); err != nil {
		return "", err
	}
	var text strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			break
		}
	}
	head, body, _ := strings.Cut(text.String(), "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		return "", fmt.Errorf("answered %q", head)
	}
	return body, nil
}

var guestMarks = regexp.MustCompile(`msg="(init has said hello|init has run the workload)".* guest_ms="([^"]*)"`)

// guestTimes are of the last boot, from what the agent has noted of it.
func (b *bootBench) guestTimes() (exec, waited time.Duration) {
	b.t.Helper()
	all := guestMarks.FindAllStringSubmatch(b.lab.out.String(), -1)
	if len(all) < 2 {
		b.t.Fatalf("the agent has noted nothing of the boot:\n%s", b.lab.out)
	}
	at := map[string]time.Duration{}
	for _, m := range all[len(all)-2:] {
		for word := range strings.FieldsSeq(m[2]) {
			name, ms, _ := strings.Cut(word, "=")
			n, err := strconv.Atoi(ms)
			if err != nil {
				b.t.Fatal(err)
			}
			at[name] = time.Duration(n) * time.Millisecond
		}
	}
	if b.boots == 1 {
		b.t.Logf("marks of a boot, in ms of the guest's kernel: %s %s", all[len(all)-2][2], all[len(all)-1][2])
	}
	return at["exec"] - at["init"], at["config"] - at["late-modules"]
}

// processStart is when a process was started, since the host's boot, to 10 ms. A holder starts nothing but its monitor,
// which becomes QEMU at once.
func processStart(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), ") ")
	ticks, err := strconv.ParseInt(strings.Fields(after)[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// busy keeps every processor busy until the function that it returns is called.
func busy(t *testing.T) (end func()) {
	t.Helper()
	var hogs []*exec.Cmd
	end = func() {
		for _, h := range hogs {
			_ = h.Process.Kill()
			_ = h.Wait()
		}
		hogs = nil
	}
	t.Cleanup(end)
	for range runtime.NumCPU() {
		hog := exec.Command("sh", "-c", "while :; do :; done")
		// In a session of its own, or the kernel's autogroups would weigh all of them as one.
		hog.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		if err := hog.Start(); err != nil {
			t.Fatal(errors.Join(errors.New("keep a processor busy"), err))
		}
		hogs = append(hogs, hog)
	}
	return end
}
