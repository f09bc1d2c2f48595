//go:build linux

package pid1

import (
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// crashAck is how long a crashed PID 1 waits for the host to take its report. It does not wait for ever, as after an
// orderly end: what reads the acknowledgement may be what has crashed. The console has the report as well.
const crashAck = time.Minute

// inCrash is what a goroutine does that has panicked. It is one of the process, as PID 1 is, so that any goroutine
// finds it.
var inCrash atomic.Pointer[crashHandler]

type crashHandler struct{ crash func(error) }

// crash ends a VM whose PID 1 has a bug: the workload is killed, the host gets a report with the cause, the disks are
// brought down and the VM resets. It runs on the goroutine that has panicked, and returns only when another one has
// crashed before.
func (b *Boot) crash(cause error) {
	if !b.crashing.CompareAndSwap(false, true) {
		return
	}
	defer b.Reboot() // whatever goes wrong here too
	logf(logError, "%v", cause)
	if err := recovered(func() error { b.lastWords(cause); return nil }); err != nil {
		logf(logError, "last words: %v", err)
	}
}

func (b *Boot) lastWords(cause error) {
	if b.control == nil || !b.control.greeted() {
		return // nobody to talk to yet; the kernel's log has it, and goes to the console
	}
	b.mu.Lock()
	step, running := b.step, b.running
	b.mu.Unlock()
	failed := guest.Failed{Stage: step, Error: cause.Error(), Code: exitNotRun, Marks: b.takeMarks()}
	if b.control.reportFailed(failed) {
		b.control.awaitAck(time.After(crashAck))
		return
	}
	b.freezer.thawAll() // a writer that waits can't be killed
	if err := running.cgroup.killAll(); err != nil {
		logf(logError, "%v", err)
	}
	if err := running.cgroup.waitEmpty(endTimeout); err != nil {
		logf(logError, "end the workload: %v", err)
	}
	exit := guest.Exit{
		Code: 128 + int(unix.SIGKILL), Signal: signalName(syscall.SIGKILL), Killed: true, Error: cause.Error(),
		StartedAt: running.startedAt.UnixNano(), ExitedAt: time.Now().UnixNano(), LastLine: b.output.finish(endTimeout),
	}
	b.control.report(exit)
	b.printReport(exit)
	b.control.awaitAck(time.After(crashAck))
	b.output.drain(time.Second)
}
