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
	stops   *stops
	execs   chan guest.Exec
	bundles chan guest.Bundle
	freezes chan guest.Freeze
	stats   chan guest.AskStats
	acked   chan struct{} // closed when the host has the report of the end

	mu sync.Mutex // held while frames are written; guards what follows
	// What a host that takes up the session has to hear again. All of it is nil before it was said.
	hello   *guest.Hello
	started *guest.Started
	final   guest.Message
	// token is that of the last Attach, and empty when no host has attached.
	token      string
	configured bool
	// first are the bundles that came before the configuration, by name.
	first map[string]guest.Bundle
}

type arrivedConfig struct {
	config guest.Config
	at     time.Duration // since boot: the clock in it is of this moment
}

func newControl(port io.ReadWriter, stops *stops) *control {
	return &control{
		port:    port,
		configs: make(chan arrivedConfig, 1),
		stops:   stops,
		execs:   make(chan guest.Exec, 16),
		bundles: make(chan guest.Bundle, 16),
		freezes: make(chan guest.Freeze, 16),
		stats:   make(chan guest.AskStats, 1),
		acked:   make(chan struct{}),
		first:   map[string]guest.Bundle{},
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
	b.control = newControl(controlPort, b.stops)
	b.output = newOutput(logsPort)
	safely("control channel", b.control.read)
	safely("acknowledgements", b.output.readAcks)
	safely("log channel", b.output.send)
	return nil
}

// SayHello is the guest's first word.
func (b *Boot) SayHello() error {
	b.nonce = newNonce()
	err := b.control.greet(guest.Hello{
		Version:       guest.Version,
		Nonce:         b.nonce,
		Init:          b.version,
		Kernel:        kernelRelease(),
		MemTotalBytes: memTotal(),
		Marks:         b.takeMarks(),
		Can:           []string{guest.CanCommands, guest.CanVolumes, guest.CanSecrets, guest.CanAttend},
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
	r := guest.NewRestartableReader(c.port, guest.MaxHostFrame)
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
			continue
		}
		switch m := m.(type) {
		case guest.Attach:
			c.attach(m)
		case guest.Config:
			c.mu.Lock()
			c.configured = true
			c.mu.Unlock()
			offer(c.configs, arrivedConfig{m, sinceBoot()})
		case guest.Bundle:
			c.bundle(m)
		case guest.Freeze:
			if !offer(c.freezes, m) {
				c.trySend(guest.Frozen{Volume: m.Volume, ID: m.ID, Error: "too much is waiting already"})
			}
		case guest.Time:
			c.setTime(m)
		case guest.AskStats:
			offer(c.stats, m) // a host that asks faster than it gets answers gets fewer
		case guest.Stop:
			offer(c.stops.asked, m)
		case guest.Exec:
			if !offer(c.execs, m) {
				c.trySend(guest.ExecResult{ID: m.ID, Code: exitNotRun, Error: "too many commands are waiting already"})
			}
		case guest.AckExit:
			c.acknowledge()
		}
	}
}

// bundle keeps what comes before the configuration, and hands on what comes after it.
func (c *control) bundle(m guest.Bundle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.configured {
		c.first[m.Name] = m
		return
	}
	if offer(c.bundles, m) {
		return
	}
	if err := c.write(guest.Bundled{Name: m.Name, Version: m.Version, Error: "too many changes are waiting already"}); err != nil {
		logf(logError, "%v", err)
	}
}

// takeBundles returns the bundles that came before the configuration, and forgets them.
func (c *control) takeBundles() map[string]guest.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.first
	c.first = nil
	return first
}

func offer[T any](c chan<- T, v T) bool {
	select {
	case c <- v:
		return true
	default:
		return false
	}
}

// greet says the first Hello, which answers a host that has attached already.
func (c *control) greet(h guest.Hello) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hello = &h
	return c.introduce()
}

// greeted tells whether the guest has said its first word, before which a host wants to hear no other.
func (c *control) greeted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hello != nil
}

// attach begins the session of another host.
func (c *control) attach(a guest.Attach) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = a.Token
	if c.hello == nil {
		return // it is about to come
	}
	if err := c.introduce(); err != nil {
		logf(logError, "%v", err)
	}
}

// introduce says everything that a host which knows nothing of this boot has to hear, in one write. It is called with
// mu held.
func (c *control) introduce() error {
	hello := *c.hello
	hello.Token, hello.Configured = c.token, c.configured
	all := []guest.Message{hello}
	if c.started != nil {
		all = append(all, *c.started)
	}
	if c.final != nil {
		all = append(all, c.final)
	}
	var frames []byte
	if c.token != "" {
		frames = guest.AppendRestart(frames)
	}
	for _, m := range all {
		var err error
		if frames, err = guest.Encode(frames, m); err != nil {
			return err
		}
	}
	if _, err := c.port.Write(frames); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	return nil
}

// start says that the workload runs. Every session hears it once.
func (c *control) start(s guest.Started) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.final != nil {
		return // PID 1 has crashed meanwhile
	}
	c.started = &s
	if err := c.write(s); err != nil {
		logf(logError, "%v", err)
	}
}

// reportFailed reports f, unless the workload has started: then it says false.
func (c *control) reportFailed(f guest.Failed) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started != nil {
		return false
	}
	c.reportLocked(f)
	return true
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

// report sends the message that ends the session: Failed or Exit. There is one end only: a second report is not sent.
func (c *control) report(m guest.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reportLocked(m)
}

// reportLocked is report with mu held.
func (c *control) reportLocked(m guest.Message) {
	if c.final != nil {
		return
	}
	c.final = m
	if err := c.write(m); err != nil {
		logf(logError, "%v", err)
	}
}

// awaitAck sends the report again every second until the host has it. There may be no host for long, because it is
// being upgraded for instance: without an acknowledgement nobody knows how the workload has ended. A signal to PID 1
// ends the wait: whoever sends ctrl-alt-del to a VM has given up on a host. So does giveUp, unless it is nil.
func (c *control) awaitAck(giveUp <-chan time.Time) {
	c.mu.Lock()
	final := c.final
	c.mu.Unlock()
	select {
	case <-c.stops.signal: // it has ended the workload, and has had its effect
	default:
	}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		select {
		case <-c.acked:
			return
		case <-c.stops.signal:
			return
		case <-giveUp:
			return
		case <-again.C:
			c.trySend(final)
		}
	}
}

func (c *control) send(m guest.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.write(m)
}

// write is called with mu held.
func (c *control) write(m guest.Message) error {
	frame, err := guest.Encode(nil, m)
	if err != nil {
		return err
	}
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
