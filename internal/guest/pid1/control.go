//go:build linux

package pid1

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// control is the guest's end of the control channel.
type control struct {
	port io.ReadWriter

	configs chan arrivedConfig
	stops   chan guest.Stop
	execs   chan guest.Exec
	acked   chan struct{} // closed when the host has the report of the end

	mu    sync.Mutex // held while a frame is written
	final guest.Message
}

type arrivedConfig struct {
	config guest.Config
	at     time.Duration // since boot: the clock in it is of this moment
}

func newControl(port io.ReadWriter) *control {
	return &control{
		port:    port,
		configs: make(chan arrivedConfig, 1),
		stops:   make(chan guest.Stop, 8),
		execs:   make(chan guest.Exec, 16),
		acked:   make(chan struct{}),
	}
}

// OpenChannels opens the two ports to the host.
func (b *Boot) OpenChannels() error {
	controlPort, err := openPort(guest.ControlChannel)
	if err != nil {
		return err
	}
	logsPort, err := openPort(guest.LogsChannel)
	if err != nil {
		return err
	}
	b.control = newControl(controlPort)
	b.output = newOutput(logsPort)
	safely("control channel", b.control.read)
	safely("acknowledgements", b.output.readAcks)
	safely("log channel", b.output.send)
	return nil
}

// SayHello is the guest's first word.
func (b *Boot) SayHello() error {
	b.nonce = newNonce()
	err := b.control.send(guest.Hello{
		Version:       guest.Version,
		Nonce:         b.nonce,
		Init:          b.version,
		Kernel:        kernelRelease(),
		MemTotalBytes: memTotal(),
		Marks:         b.takeMarks(),
	})
	if err != nil {
		return err
	}
	safely("heartbeat", b.control.beat)
	return nil
}

// AwaitConfig waits for the host's answer to the hello.
func (b *Boot) AwaitConfig() error {
	arrived := <-b.control.configs
	if arrived.config.Nonce != b.nonce {
		return fmt.Errorf("the configuration is for another boot (nonce %q)", arrived.config.Nonce)
	}
	b.config, b.configAt = arrived.config, arrived.at
	return nil
}

// newNonce must not wait for the kernel's random numbers to be ready: this early that can take seconds on an emulated
// CPU. It is a name, not a secret.
func newNonce() string {
	var raw [16]byte
	if _, err := unix.Getrandom(raw[:], unix.GRND_INSECURE); err != nil {
		logf(logError, "draw a nonce: %v", err)
	}
	return hex.EncodeToString(raw[:])
}

// read hands the host's frames to those who wait for them. What nobody waits for any more is dropped.
func (c *control) read() {
	r := guest.NewReader(c.port, guest.MaxHostFrame)
	for {
		t, body, err := r.Next()
		if err != nil {
			logf(logError, "control channel: %v", err)
			return
		}
		m, err := guest.Decode(t, body)
		if errors.Is(err, guest.ErrUnknownType) {
			continue
		}
		if err != nil {
			logf(logError, "control channel: %v", err)
			return
		}
		switch m := m.(type) {
		case guest.Config:
			offer(c.configs, arrivedConfig{m, sinceBoot()})
		case guest.Stop:
			offer(c.stops, m)
		case guest.Exec:
			if !offer(c.execs, m) {
				c.trySend(guest.ExecResult{ID: m.ID, Code: exitNotRun, Error: "too many commands are waiting already"})
			}
		case guest.AckExit:
			c.acknowledge()
		}
	}
}

func offer[T any](c chan<- T, v T) bool {
	select {
	case c <- v:
		return true
	default:
		return false
	}
}

// acknowledge is called by read only.
func (c *control) acknowledge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.final == nil {
		return // there is nothing yet that could be acknowledged
	}
	select {
	case <-c.acked:
	default:
		close(c.acked)
	}
}

// beat sends heartbeats from a thread of its own, so that nothing else that PID 1 does can delay them.
func (c *control) beat() {
	runtime.LockOSThread()
	for {
		c.trySend(guest.Heartbeat{MS: sinceBoot().Milliseconds()})
		time.Sleep(guest.HeartbeatInterval)
	}
}

// report sends the message that ends the session: Failed or Exit.
func (c *control) report(m guest.Message) {
	c.mu.Lock()
	c.final = m
	c.mu.Unlock()
	c.trySend(m)
}

// awaitAck sends the report again every second until the host has it, for as long as limit.
func (c *control) awaitAck(limit time.Duration) bool {
	c.mu.Lock()
	final := c.final
	c.mu.Unlock()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		select {
		case <-c.acked:
			return true
		case <-again.C:
			c.trySend(final)
		case <-late.C:
			return false
		}
	}
}

func (c *control) send(m guest.Message) error {
	frame, err := guest.Encode(nil, m)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.port.Write(frame); err != nil {
		return fmt.Errorf("send %T: %w", m, err)
	}
	return nil
}

func (c *control) trySend(m guest.Message) {
	if err := c.send(m); err != nil {
		logf(logError, "%v", err)
	}
}

// openPort opens the virtio-serial port of a name; the kernel learns the names a moment after it finds the device.
func openPort(name string) (io.ReadWriter, error) {
	var node string
	err := waitFor(deviceTimeout, func() (bool, error) {
		var err error
		node, err = findPort("/sys/class/virtio-ports", name)
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	// Blocking on purpose: a write waits for the host to be there, which the poller takes for a hang-up.
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node, Err: err}
	}
	return port{os.NewFile(uintptr(fd), node)}, nil
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
	return "", fmt.Errorf("the VM has no port %q among its %d", name, len(files))
}

// port is a virtio-serial port. Reading one while the host is not connected gives nothing at once, which is not the
// end.
type port struct{ *os.File }

func (p port) Read(buf []byte) (int, error) {
	for {
		n, err := p.File.Read(buf)
		if n > 0 || (err != nil && !errors.Is(err, io.EOF)) {
			return n, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
