//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// OpenChannel opens the guest's end of a channel, named as its virtio-serial port is. Where the VM has no such ports
// but a virtio socket, the channel is a connection to the host, which is made again whenever it breaks. Either way
// reading and writing wait for the host, which may come and go.
func OpenChannel(name string) (io.ReadWriter, error) {
	var node string
	err := waitFor(deviceTimeout, func() (bool, error) {
		var err error
		if node, err = findPort("/sys/class/virtio-ports", name); err == nil {
			return true, nil
		}
		// The kernel learns the names of ports a moment after it finds their device, so both are asked each time.
		return hasVsock("/dev/vsock"), err
	})
	if err != nil {
		return nil, err
	}
	if node == "" {
		return openVsock(name)
	}
	// Blocking on purpose: a write waits for the host to be there, which the poller takes for a hang-up.
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node, Err: err}
	}
	return port{os.NewFile(uintptr(fd), node), changes(fd)}, nil
}

// changes gets something whenever the host connects to a port or goes away, as far as the kernel tells (O_ASYNC).
func changes(fd int) <-chan os.Signal {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGIO)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETOWN, os.Getpid())
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_ASYNC)
	}
	if err != nil {
		logf(logInfo, "hear of the host's coming and going: %v", err) // it is looked for in any case
	}
	return changed
}

func findPort(class, name string) (string, error) {
	files, err := filepath.Glob(filepath.Join(class, "*", "name"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if got, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(got)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(f)), nil
		}
	}
	return "", fmt.Errorf("the VM has no port %q among its %d, and no vsock", name, len(files))
}

// lookForHost is how often a port is read that no host is connected to. Without a host a guest has to be idle: a machine
// runs many of them, and the host that comes back wants to have the processor.
const lookForHost = 250 * time.Millisecond

// port is a virtio-serial port. Reading one while the host is not connected gives nothing at once, which is not the
// end.
type port struct {
	*os.File
	changed <-chan os.Signal
}

func (p port) Read(buf []byte) (int, error) {
	late := time.NewTimer(lookForHost)
	defer late.Stop()
	for {
		n, err := p.File.Read(buf)
		if n > 0 || (err != nil && !errors.Is(err, io.EOF)) {
			return n, err
		}
		select {
		case <-p.changed:
		case <-late.C:
		}
		late.Reset(lookForHost)
	}
}

// hasVsock tells whether the kernel has an address on the virtio socket: its driver may be there without a device.
func hasVsock(device string) bool {
	f, err := os.Open(device)
	if err != nil {
		return false
	}
	defer f.Close()
	const getLocalCID = 0x7b9 // IOCTL_VM_SOCKETS_GET_LOCAL_CID: _IO(7, 0xb9)
	cid, err := unix.IoctlGetInt(int(f.Fd()), getLocalCID)
	return err == nil && uint32(cid) > unix.VMADDR_CID_HOST && uint32(cid) != unix.VMADDR_CID_ANY
}

func openVsock(name string) (io.ReadWriter, error) {
	number, ok := map[string]uint32{guest.ControlChannel: guest.ControlPort, guest.LogsChannel: guest.LogsPort}[name]
	if !ok {
		return nil, fmt.Errorf("channel %q has no vsock port", name)
	}
	return &redialled{dial: func() (io.ReadWriteCloser, error) { return dialHost(number) }}, nil
}

// dialHost connects to a vsock port of the host.
func dialHost(number uint32) (io.ReadWriteCloser, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// A connection is refused at once or made at once: only then is it the poller's, so that closing ends a read.
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: number}); err != nil {
		closeFD(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		closeFD(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("vsock:%d", number)), nil
}

// redialled is a stream to the host over connections that follow each other. A write goes to one connection as a
// whole: when that one breaks, it is repeated on the next, so writes must be of whole frames.
type redialled struct {
	dial func() (io.ReadWriteCloser, error)

	mu   sync.Mutex // held while dialling too: nobody can do without the connection
	conn io.ReadWriteCloser
}

func (r *redialled) Read(buf []byte) (int, error) {
	for {
		conn := r.connected()
		if n, _ := conn.Read(buf); n > 0 {
			return n, nil
		}
		r.drop(conn)
	}
}

func (r *redialled) Write(b []byte) (int, error) {
	for {
		conn := r.connected()
		n, err := conn.Write(b)
		if err == nil {
			return n, nil
		}
		r.drop(conn)
	}
}

// connected returns the connection that there is, or tries until there is one: without the host, PID 1 has nothing
// better to do.
func (r *redialled) connected() io.ReadWriteCloser {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pause := time.Millisecond; r.conn == nil; pause = min(2*pause, 250*time.Millisecond) {
		conn, err := r.dial()
		if err == nil {
			r.conn = conn
			break
		}
		time.Sleep(pause)
	}
	return r.conn
}

// drop gives a broken connection up, once.
func (r *redialled) drop(conn io.ReadWriteCloser) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == conn {
		r.conn = nil
		_ = conn.Close()             // it is broken already
		time.Sleep(time.Millisecond) // a host that accepts only to hang up must not keep PID 1 busy
	}
}
