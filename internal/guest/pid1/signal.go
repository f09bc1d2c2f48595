//go:build linux

package pid1

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// Real-time signals as the C library counts them: it keeps the kernel's 32 and 33 for itself.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// parseSignal reads a signal as image configs write it: SIGTERM, TERM, 15, SIGRTMIN+3, RTMAX-1. The empty string is
// SIGTERM.
func parseSignal(s string) (syscall.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("there is no signal %d", n)
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for _, base := range []struct {
		name  string
		value int
	}{{"RTMIN", sigRTMin}, {"RTMAX", sigRTMax}} {
		rest, ok := strings.CutPrefix(name, base.name)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n := base.value + offset; n >= sigRTMin && n <= sigRTMax {
			return syscall.Signal(n), nil
		}
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("there is no signal %q", s)
}

// signalName is the name of a signal, or its number where it has none.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(int(sig))
}

// consoleGrace is how long the workload has after a signal to PID 1, which comes with no time of its own.
const consoleGrace = 10 * time.Second

// stops carries what asks for the end of the workload, by whom ever.
type stops struct {
	asked  chan guest.Stop
	signal chan struct{} // PID 1 itself was told to go down
}

func newStops() *stops {
	return &stops{asked: make(chan guest.Stop, 8), signal: make(chan struct{}, 1)}
}

// watchSignals turns the signals that ask a machine to go down into stops: SIGINT, which is ctrl-alt-del of the VMM,
// SIGTERM and SIGPWR. All others that can be caught are taken and ignored: with Go's own handler for them PID 1 would
// exit, and a workload running as root can send any. It is called before everything else, because ctrl-alt-del can
// come in the middle of the boot; the stop then waits for the workload's start.
func watchSignals(to *stops) {
	if err := takeCancel(); err != nil {
		logf(logError, "%v", err)
	}
	all := make(chan os.Signal, 16)
	for n := syscall.Signal(1); n < 32; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG, unix.SIGPROF, unix.SIGPIPE:
			// can't be caught, or harmless, or the Go runtime's own
		default:
			signal.Notify(all, n)
		}
	}
	safely("signals", func() {
		for sig := range all {
			switch sig {
			case unix.SIGINT, unix.SIGTERM, unix.SIGPWR:
				offer(to.signal, struct{}{})
				offer(to.asked, guest.Stop{TimeoutMS: consoleGrace.Milliseconds()}) // or several are waiting already
			}
		}
	})
}
