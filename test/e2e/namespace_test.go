package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A namespace is one of the network, which lives for as long as a process in it.
type namespace struct {
	keeper *exec.Cmd
	path   string
	hold   io.Closer
}

// newNamespace makes one. Its keeper ends with the test, however that ends: it reads from a pipe that the test holds.
func newNamespace(t *testing.T) *namespace {
	t.Helper()
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	return &namespace{keeper: cmd, path: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), hold: in}
}

func (n *namespace) end() {
	_ = n.hold.Close()
	_ = n.keeper.Wait() // it has nothing to say
}

// command is one that runs inside. It becomes the program, so that its pid is the program's.
func (n *namespace) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.path, "--"}, args...)...)
}

func (n *namespace) ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := n.command(append([]string{"ip"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// do calls f on a thread that is inside.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		file, err := os.Open(n.path)
		if err == nil {
			err = errors.Join(unix.Setns(int(file.Fd()), unix.CLONE_NEWNET), file.Close())
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// dial connects to an address, which is none that has to be looked up, from inside.
func (n *namespace) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	doErr := n.do(func() error {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
		return nil
	})
	return c, errors.Join(doErr, err)
}
