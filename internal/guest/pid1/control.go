//go:build linux

package pid1

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
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

// OpenChannels opens the two channels to the host.
func (b *Boot) OpenChannels() error {
	controlPort, err := OpenChannel(guest.ControlChannel)
	if err != nil {
		return err
	}
	logsPort, err := OpenChannel(guest.LogsChannel)
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
