package sandbox

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

// argv0 is what a process of ours is called.
const argv0 = "pinnace-sandbox"

// Descriptors of the process, beside those for standard input, output and error.
const (
	connFD = 3
	rootFD = 4
)

// A Part is what runs confined. It speaks over conn, and ends when that does.
type Part func(conn *net.UnixConn) error

// wired says that Main was called, so that this binary can be started again for a part.
var wired atomic.Bool

// Possible tells whether this binary can confine itself. One that was built with cgo cannot: there, nothing can be
// given up in all threads at once. Test binaries are often built so, and do without.
func Possible() bool { return possible() }

var possible = sync.OnceValue(canConfine)

// Main makes the binary able to run parts, which are known by name. The first thing in main, or in TestMain,
// calls it. In a process that Start made it confines the process, runs the part and never returns. In any
// other it returns at once.
func Main(parts map[string]Part) {
	if len(os.Args) == 0 || os.Args[0] != argv0 {
		wired.Store(true)
		return
	}
	if err := run(parts); err != nil {
		fmt.Fprintln(os.Stderr, argv0+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Available tells whether Start can work.
func Available() bool { return wired.Load() && Possible() }

func canConfine() bool {
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_GETPID, 0, 0, 0)
	return errno == 0
}

func run(parts map[string]Part) error {
	if len(os.Args) != 3 {
		return fmt.Errorf("started with %d arguments; only pinnace itself starts this", len(os.Args)-1)
	}
	part := parts[os.Args[1]]
	if part == nil {
		return fmt.Errorf("this binary has no part %q", os.Args[1])
	}
	limits, err := parseLimits(os.Args[2])
	if err != nil {
		return err
	}
	if err := closeOthers(); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	f := os.NewFile(connFD, "connection")
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("connection: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("connection is a %T", c)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := confine(limits); err != nil {
		return err
	}
	return part(conn)
}

// limits of the process, as an argument of its command line.
type limits struct {
	file uint64 // bytes of a file
	data uint64 // bytes of private memory that can be written
}

func (l limits) String() string {
	return strconv.FormatUint(l.file, 10) + "," + strconv.FormatUint(l.data, 10)
}

func parseLimits(s string) (l limits, err error) {
	if _, err := fmt.Sscanf(s, "%d,%d", &l.file, &l.data); err != nil {
		return limits{}, fmt.Errorf("limits %q: %w", s, err)
	}
	return l, nil
}
