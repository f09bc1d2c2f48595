//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// Boot is one boot of the VM. Its exported methods are the steps, called one after the other from main.
type Boot struct {
	version string

	// Owned by the steps, that is by main; other goroutines start after what they read is set.
	nonce     string
	stops     *stops
	control   *control
	output    *output
	config    guest.Config
	configAt  time.Duration // since boot, when config came
	disks     []string      // device node of each of config.Disks
	devices   int           // descriptor of the kernel's /dev, which the workload doesn't see; -1 before it is mounted
	upper     int           // descriptor of the file system under the overlay, -1 when it is memory
	workload  *cgroup
	processes *processes
	user      user
	freezer   freezer
	secrets   []*secret
	secretEnv []string // NAME=value
	env       []string
	workdir   string
	main      *child
	failed    bool

	crashing atomic.Bool // a goroutine has panicked: it has the last word

	mu      sync.Mutex // guards what follows
	marks   []guest.Mark
	step    string       // that which is under way, or the last one
	running *runningWork // nil until just before the host hears of the start
}

// runningWork is what the end of the workload needs.
type runningWork struct {
	cgroup    *cgroup
	startedAt time.Time
}

// New starts the boot of a VM by the init of this version.
func New(version string) *Boot {
	b := &Boot{version: version, upper: -1, devices: -1, stops: newStops(), freezer: freezer{dirs: map[string]string{}}}
	b.mark("init")
	return b
}

// TakeCharge makes the process behave as PID 1: no signal ends it, and no panic of a goroutine.
func (b *Boot) TakeCharge() error {
	inCrash.Store(&crashHandler{b.crash})
	watchSignals(b.stops)
	return nil
}

// Step runs one step, unless one before it failed, and notes when it was done. An error or a panic is reported to the
// host under the step's name, and the steps after it are skipped.
func (b *Boot) Step(name string, do func() error) {
	if b.failed {
		return
	}
	b.mu.Lock()
	b.step = name
	b.mu.Unlock()
	if err := recovered(func() error { trap(name); return do() }); err != nil {
		b.fail(name, err)
		return
	}
	b.mark(name)
}

// fail tells the host that the workload will not run. Without a channel the console has to do.
func (b *Boot) fail(stage string, err error) {
	b.failed = true
	f := guest.Failed{Stage: stage, Error: err.Error(), Code: exitNotRun, Marks: b.takeMarks()}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		f.Errno = unix.ErrnoName(errno)
	}
	if start, ok := errors.AsType[*execError](err); ok {
		f.Code = start.code
	}
	logf(logError, "%s: %v", stage, err)
	if b.control != nil {
		b.control.report(f)
	}
}

func (b *Boot) mark(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.marks = append(b.marks, guest.Mark{Name: name, MS: sinceBoot().Milliseconds()})
}

// takeMarks returns the marks that no message has carried yet.
func (b *Boot) takeMarks() []guest.Mark {
	b.mu.Lock()
	defer b.mu.Unlock()
	marks := b.marks
	b.marks = nil
	return marks
}

// recovered turns a panic of do into an error with the place where it happened.
func recovered(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("bug in pinnace-init: %v\n%s", r, debug.Stack())
		}
	}()
	return do()
}

// safely starts a goroutine of PID 1. None of them is waited for: they live as long as the VM. One that panics was
// needed for something, so that nothing can be trusted to go on without it: the VM ends, with a report.
func safely(name string, do func()) {
	go func() {
		err := recovered(func() error { trap(name); do(); return nil })
		if err == nil {
			return
		}
		logf(logError, "%s: %v", name, err)
		if h := inCrash.Load(); h != nil {
			h.crash(fmt.Errorf("%s: %w", name, err))
		}
	}()
}

// sinceBoot is the time since the kernel started.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Levels of kernel messages. With "quiet" on the command line only errors reach the console.
const (
	logError = 3
	logInfo  = 6
)

// kernelLog is /dev/kmsg, once there is one. It is kept open: the workload's /dev has none.
var kernelLog atomic.Pointer[os.File]

// logf writes to the kernel's log, which exists before any channel and goes to the console. In tests there is none: the
// kernel is somebody else's.
func logf(level int, format string, args ...any) {
	f := kernelLog.Load()
	if f == nil {
		return
	}
	line := fmt.Sprintf(format, args...)
	const maxRecord = 900 // the kernel refuses records of more than about 1 KiB
	if len(line) > maxRecord {
		line = line[:maxRecord]
	}
	fmt.Fprintf(f, "<%d>pinnace-init: %s\n", level, line)
}

// makeDir makes a directory and its parents as an image expects them to be: for all to enter.
func makeDir(path string) error {
	return os.MkdirAll(path, 0o755) //nolint:gosec // the workload runs as any user
}

// closeFD closes a descriptor whose close can't tell anything of use.
func closeFD(fd int) { _ = unix.Close(fd) }

// waitFor polls until ready says true, and fails after limit with the error that ready gave last.
func waitFor(limit time.Duration, ready func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for pause := 500 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		ok, err := ready()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v: %w", limit, err)
		}
		time.Sleep(pause)
	}
}
