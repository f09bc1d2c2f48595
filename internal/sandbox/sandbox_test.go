package sandbox_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Main(map[string]sandbox.Part{
		"try":   try,
		"panic": func(*net.UnixConn) error { panic("a fault\x1b[2J") },
		"fail":  func(*net.UnixConn) error { return errors.New("no good") },
		"grow":  grow,
		"wait":  func(conn *net.UnixConn) error { _, err := io.Copy(io.Discard, conn); return err },
	})
	os.Exit(m.Run())
}

// attempts are what a process that was taken over would try. Each is made inside, and its error told.
var attempts = map[string]func() error{
	"open":          func() error { _, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0); return err },
	"openat":        func() error { _, err := unix.Openat(unix.AT_FDCWD, ".", unix.O_RDONLY, 0); return err },
	"openat2":       func() error { _, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{}); return err },
	"create":        func() error { _, err := unix.Open("made", unix.O_CREAT|unix.O_WRONLY, 0o600); return err },
	"unlink":        func() error { return unix.Unlink("/etc/passwd") },
	"mkdir":         func() error { return unix.Mkdir("made", 0o700) },
	"stat":          func() error { return unix.Stat("/etc/passwd", new(unix.Stat_t)) },
	"socket":        func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
	"socket unix":   func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"socketpair":    func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"execve":        func() error { return unix.Exec("/bin/sh", []string{"sh"}, nil) },
	"fork":          func() error { return raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)) },
	"clone newuser": func() error { return raw(unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_THREAD) },
	"clone3":        func() error { return raw(unix.SYS_CLONE3) },
	"unshare":       func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"setns":         func() error { return unix.Setns(3, 0) },
	"ptrace":        func() error { return raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1) },
	"kill parent":   func() error { return unix.Kill(parent, unix.SIGKILL) },
	"kill all":      func() error { return unix.Kill(-1, unix.SIGKILL) },
	"tgkill parent": func() error { return unix.Tgkill(parent, parent, unix.SIGKILL) },
	"pidfd_open":    func() error { _, err := unix.PidfdOpen(parent, 0); return err },
	"process_vm":    func() error { return raw(unix.SYS_PROCESS_VM_READV, uintptr(parent)) },
	"setuid":        func() error { return raw(unix.SYS_SETUID, 0) },
	"setresuid":     func() error { return raw(unix.SYS_SETRESUID, 0, 0, 0) },
	"capset":        func() error { return raw(unix.SYS_CAPSET) },
	"chroot":        func() error { return unix.Chroot("..") },
	"mount":         func() error { return unix.Mount("none", "/", "tmpfs", 0, "") },
	"bpf":           func() error { return raw(unix.SYS_BPF) },
	"io_uring":      func() error { return raw(unix.SYS_IO_URING_SETUP) },
	"keyctl":        func() error { return raw(unix.SYS_KEYCTL) },
	"userfaultfd":   func() error { return raw(unix.SYS_USERFAULTFD) },
	"perf":          func() error { return raw(unix.SYS_PERF_EVENT_OPEN) },
	"ioctl":         func() error { return raw(unix.SYS_IOCTL, 3, unix.TIOCSTI) },
	"sendmsg":       func() error { return raw(unix.SYS_SENDMSG, 3) },
	"prctl":         func() error { return raw(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1) },
	"prlimit":       func() error { return raw(unix.SYS_PRLIMIT64) },
	"memfd":         func() error { _, err := unix.MemfdCreate("x", 0); return err },
	"run memory": func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	},
	"make memory run": func() error { return raw(unix.SYS_MPROTECT, 0x10000, 0x1000, unix.PROT_EXEC|unix.PROT_READ) },
	"dup":             func() error { _, err := unix.FcntlInt(0, unix.F_DUPFD, 10); return err },
	"own":             func() error { _, err := unix.FcntlInt(0, unix.F_SETOWN, 1); return err },
}

var parent = os.Getppid()

func raw(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	// In another thread than the first, which is the one that confined itself.
	_, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno == 0 {
		return nil
	}
	return errno
}

// try makes the attempts that it is asked for, and says what came of them.
func try(conn *net.UnixConn) error {
	buffer := make([]byte, 1024)
	for {
		n, err := conn.Read(buffer)
		if n == 0 || err != nil {
			return nil
		}
		var said string
		if attempt := attempts[string(buffer[:n])]; attempt != nil {
			said = fmt.Sprint(attempt())
		} else {
			said = fmt.Sprint("pid ", os.Getpid())
		}
		if _, err := conn.Write([]byte(said)); err != nil {
			return err
		}
	}
}

func grow(conn *net.UnixConn) error {
	var all [][]byte
	for range 1000 {
		b := make([]byte, 4<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	_, err := fmt.Fprint(conn, len(all))
	return err
}

func start(t *testing.T, opts sandbox.Options) *sandbox.Process {
	t.Helper()
	if !sandbox.Available() {
		t.Skip("needs a binary without cgo: build with CGO_ENABLED=0")
	}
	opts.Dir = t.TempDir()
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 256 << 20
	}
	p, err := sandbox.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if left, err := os.ReadDir(opts.Dir); len(left) != 0 || err != nil {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return p
}

func ask(t *testing.T, p *sandbox.Process, what string) string {
	t.Helper()
	if _, err := p.Conn.Write([]byte(what)); err != nil {
		t.Fatalf("%s: %v; process: %v", what, err, p.Ended())
	}
	buffer := make([]byte, 1024)
	n, err := p.Conn.Read(buffer)
	if err != nil || n == 0 {
		t.Fatalf("%s: %v; process: %v", what, err, p.Ended())
	}
	return string(buffer[:n])
}

func TestNothingIsAllowed(t *testing.T) {
	p := start(t, sandbox.Options{Part: "try"})
	for name := range attempts {
		if got := ask(t, p, name); got != unix.EPERM.Error() {
			t.Errorf("%s: got %s, want %s", name, got, unix.EPERM.Error())
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	// A descriptor that nobody closed on the way.
	leaked, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leaked)
	p := start(t, sandbox.Options{Part: "try"})
	who := ask(t, p, "who")
	dir := fmt.Sprintf("/proc/%d", p.Pid())
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status has not %q:\n%s", want, status)
		}
	}
	tasks, err := filepath.Glob(dir + "/task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("threads: %v, %v", tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err == nil && (!strings.Contains(string(b), "Seccomp:\t2") || !strings.Contains(string(b), "CapEff:\t0000000000000000")) {
			t.Errorf("a thread is free: %s", b)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("the rest needs root to look at: ", who)
	}
	if who != "pid 1" {
		t.Errorf("it is %s", who)
	}
	for _, want := range []string{"Uid:" + strings.Repeat("\t2147381353", 4), "Gid:" + strings.Repeat("\t2147381353", 4), "Groups:\t \n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status has not %q:\n%s", want, status)
		}
	}
	for _, ns := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := os.Readlink(dir + "/ns/" + ns); err != nil || theirs == ours {
			t.Errorf("namespace %s: %s, %v", ns, theirs, err)
		}
	}
	if left, err := os.ReadDir(dir + "/root"); len(left) != 0 || (err != nil && !errors.Is(err, os.ErrNotExist)) {
		t.Errorf("its root has %v, %v", left, err)
	}
	if root, err := os.Readlink(dir + "/root"); err != nil || !strings.HasSuffix(root, "(deleted)") {
		t.Errorf("its root is %s, %v", root, err)
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	sockets := 0
	for _, fd := range fds {
		if target, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			sockets++
		}
	}
	if sockets != 1 || len(fds) > 8 {
		t.Errorf("%d descriptors are open, %d of them sockets, want the connection only", len(fds), sockets)
	}
	if limits, err := os.ReadFile(dir + "/limits"); err != nil || !strings.Contains(string(limits), "Max core file size        0 ") {
		t.Errorf("limits: %v\n%s", err, limits)
	}
}

func TestEnds(t *testing.T) {
	for part, want := range map[string]string{
		"panic": `exit status 2: panic: a fault`,
		"fail":  "exit status 1: pinnace-sandbox: no good",
		"none":  `this binary has no part "none"`,
	} {
		p := start(t, sandbox.Options{Part: part})
		if err := p.Ended(); err == nil || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%s: got %q, want %s in it", part, err, want)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	p := start(t, sandbox.Options{Part: "grow", MaxBytes: 64 << 20})
	err := p.Ended()
	if err == nil || (!strings.Contains(err.Error(), "of memory, at most 64 MiB") && !strings.Contains(err.Error(), "out of memory")) {
		t.Errorf("got %v", err)
	}
}

func TestKill(t *testing.T) {
	p := start(t, sandbox.Options{Part: "wait"})
	cause := errors.New("enough")
	p.Kill(cause)
	if err := p.Ended(); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

// A program that could confine itself but for how it was built does not go on without.
func TestCgo(t *testing.T) {
	if sandbox.Possible() {
		t.Skip("this binary was built without cgo")
	}
	_, err := sandbox.Start(sandbox.Options{Part: "wait", Dir: t.TempDir()})
	if err == nil || errors.Is(err, sandbox.ErrUnavailable) || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("got %v", err)
	}
}

// A process does not outlive the one that started it, however that ended.
func TestOrphan(t *testing.T) {
	if os.Getenv("PINNACE_TEST_ORPHAN") != "" {
		p, err := sandbox.Start(sandbox.Options{Part: "wait", Dir: os.Getenv("PINNACE_TEST_ORPHAN"), MaxBytes: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("pid", p.Pid())
		select {}
	}
	if !sandbox.Available() {
		t.Skip("needs a binary without cgo: build with CGO_ENABLED=0")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestOrphan$")
	cmd.Env = append(os.Environ(), "PINNACE_TEST_ORPHAN="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(20 * time.Second); syscall.Kill(pid, 0) == nil; {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

// A binary that is started as a sandbox by somebody else does nothing.
func TestStartedByHand(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Args = []string{"pinnace-sandbox"}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "only pinnace itself starts this") {
		t.Errorf("got %v: %s", err, out)
	}
}
