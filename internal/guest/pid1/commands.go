//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// killAfter is how long a command that is to end has after its signal.
const killAfter = 2 * time.Second

// endOfText is what a terminal takes for the end of the input.
const endOfText = 4

// commands are those beside the workload that somebody talks to. They end with the session that began them: when
// another host takes it up, when none is heard of for guest.HostTimeout, and with the workload.
type commands struct {
	// frames go to the host. The one who takes them must have encoded one before it takes the next.
	frames chan guest.Message

	mu      sync.Mutex                                // guards what follows
	launch  func(guest.RunCommand) (*launched, error) // nil while no workload runs
	all     map[uint64]*dialogue
	heard   time.Time // when the host was heard of last
	watched bool      // watchHost runs
}

// launched is a command's process, and everything that it takes to talk to it.
type launched struct {
	child   *child
	stdin   io.WriteCloser            // nil: it has nothing to read
	outputs map[string]deadlineReader // by stream; closed by close
	resize  func(rows, cols uint16)   // nil without a terminal
	signal  func(syscall.Signal)      // to its process group
	kill    func()                    // everything that it has started
	close   func()                    // gives everything up; the process has ended
}

func newCommands() *commands {
	return &commands{frames: make(chan guest.Message), all: map[uint64]*dialogue{}}
}

// serve begins to run commands by launch.
func (c *commands) serve(launch func(guest.RunCommand) (*launched, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.launch = launch
}

// finish runs no more commands, and waits, for as long as limit, until the host was told of the end of those that there
// were. They have been killed.
func (c *commands) finish(limit time.Duration) {
	c.serve(nil)
	err := waitFor(limit, func() (bool, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.all) == 0, errors.New("commands have not ended")
	})
	if err != nil {
		logf(logError, "%v", err)
	}
}

// reset ends all commands: nobody is there any more who waits for them.
func (c *commands) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.all {
		d.giveUp()
	}
}

// hear notes that there is a host.
func (c *commands) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
}

// watchHost ends commands whose host is gone, for as long as there are any.
func (c *commands) watchHost() {
	tick := time.NewTicker(guest.HostInterval)
	defer tick.Stop()
	for range tick.C {
		c.mu.Lock()
		c.watched = len(c.all) > 0
		over, gone := !c.watched, time.Since(c.heard) > guest.HostTimeout
		c.mu.Unlock()
		if over {
			return
		}
		if gone {
			c.reset()
		}
	}
}

// handle acts on a frame from the host about a command, without waiting for anything.
func (c *commands) handle(m guest.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m := m.(type) {
	case guest.RunCommand:
		c.begin(m)
	case guest.CommandInput:
		if d := c.all[m.ID]; d != nil {
			d.take(m)
		}
	case guest.CommandResize:
		if d := c.all[m.ID]; d != nil {
			d.resize(m.Rows, m.Cols)
		}
	case guest.CommandSignal:
		if d := c.all[m.ID]; d != nil {
			d.signal(m.Signal)
		}
	case guest.CommandCredit:
		if d := c.all[m.ID]; d != nil {
			d.credit.Give(m.Bytes)
		}
	case guest.EndCommand:
		if d := c.all[m.ID]; d != nil {
			d.giveUp()
		}
	}
}

// begin is called with mu held.
func (c *commands) begin(r guest.RunCommand) {
	refuse := func(why string) {
		safely("refused command", func() { c.frames <- guest.CommandEnded{ID: r.ID, Code: exitNotRun, Error: why} })
	}
	switch {
	case c.launch == nil:
		refuse("the workload does not run")
		return
	case c.all[r.ID] != nil:
		return // the host's mistake, and nothing that another frame with this number could mend
	case len(c.all) >= guest.MaxCommands:
		refuse(fmt.Sprintf("%d commands are running already", guest.MaxCommands))
		return
	}
	d := &dialogue{
		spec: r, frames: c.frames, credit: guest.NewCredit(r.Window), muted: make(chan struct{}), over: make(chan struct{}),
		arrived: make(chan struct{}, 1), room: guest.NewCredit(guest.InputWindow),
	}
	c.all[r.ID] = d
	launch := c.launch
	if !c.watched {
		c.watched = true
		safely("host of commands", c.watchHost)
	}
	safely("command", func() {
		ended := guest.CommandEnded{Code: exitNotRun}
		if err := recovered(func() error { ended = d.run(launch); return nil }); err != nil {
			ended.Error = err.Error()
		}
		ended.ID = r.ID
		c.frames <- ended
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.all, r.ID)
	})
}

// dialogue is one command with what is on its way to and from it.
type dialogue struct {
	spec   guest.RunCommand
	frames chan<- guest.Message
	credit *guest.Credit // how much output the host takes
	muted  chan struct{} // closed when nobody wants its output any more
	over   chan struct{} // closed when it has ended
	exited atomic.Bool   // its process has ended; what it left in its outputs is all there is

	arrived chan struct{} // input or eof has changed
	room    *guest.Credit // for input

	mu      sync.Mutex // guards what follows
	process *launched  // nil before it runs
	input   [][]byte
	eof     bool
	ending  bool
	signals []syscall.Signal // that came before the process ran
}

// run runs the command to its end.
func (d *dialogue) run(launch func(guest.RunCommand) (*launched, error)) guest.CommandEnded {
	defer close(d.over)
	p, err := launch(d.spec)
	if err != nil {
		failed := execFailed(err)
		return guest.CommandEnded{Code: failed.Code, Error: failed.Error}
	}
	defer p.close()
	d.send(guest.CommandStarted{ID: d.spec.ID, PID: p.child.pid})
	d.runs(p)
	if p.stdin != nil {
		safely("input of command", func() { d.feed(p.stdin) })
	}
	var pumps sync.WaitGroup
	for stream, r := range p.outputs {
		pumps.Add(1)
		safely("output of command", func() {
			defer pumps.Done()
			d.pump(stream, r)
		})
	}
	status, timedOut := d.await(p)
	// What it leaves behind ends with it: nobody would ever know of it.
	p.kill()
	d.exited.Store(true)
	for _, r := range p.outputs {
		_ = r.SetReadDeadline(time.Now().Add(endTimeout)) // of a pipe or a terminal: always possible
	}
	pumps.Wait()
	exit := ending{status: status}.report(false)
	return guest.CommandEnded{Code: exit.Code, Signal: exit.Signal, TimedOut: timedOut}
}

// runs hands the process over, with what came for it before it was there.
func (d *dialogue) runs(p *launched) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process = p
	if p.resize != nil {
		p.resize(d.spec.Rows, d.spec.Cols)
	}
	for _, sig := range d.signals {
		p.signal(sig)
	}
	if d.ending {
		d.end(unix.SIGHUP)
	}
}

// await waits for the end of the process, which is brought about when its time is up.
func (d *dialogue) await(p *launched) (status syscall.WaitStatus, timedOut bool) {
	var late <-chan time.Time
	if d.spec.TimeoutMS > 0 {
		timer := time.NewTimer(time.Duration(d.spec.TimeoutMS) * time.Millisecond)
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case status = <-p.child.status:
			return status, timedOut
		case <-late:
			timedOut = true
			d.mu.Lock()
			d.end(unix.SIGTERM)
			d.mu.Unlock()
		}
	}
}

// giveUp ends a command that nobody waits for any more.
func (d *dialogue) giveUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return
	}
	d.ending = true
	close(d.muted)
	if d.process != nil {
		d.end(unix.SIGHUP)
	}
}

// end is called with mu held, while the process is there.
func (d *dialogue) end(first syscall.Signal) {
	p := d.process
	p.signal(first)
	safely("end of command", func() {
		late := time.NewTimer(killAfter)
		defer late.Stop()
		select {
		case <-d.over:
		case <-late.C:
			p.kill()
		}
	})
}

func (d *dialogue) resize(rows, cols uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.spec.Rows, d.spec.Cols = rows, cols
	if d.process != nil && d.process.resize != nil {
		d.process.resize(rows, cols)
	}
}

func (d *dialogue) signal(name string) {
	sig, err := parseSignal(name)
	if err != nil {
		return // there is nobody to tell
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.process != nil:
		d.process.signal(sig)
	case len(d.signals) < 8: // far more than somebody sends while a process starts
		d.signals = append(d.signals, sig)
	}
}

// take keeps input until the command reads it. A host that sends more than it has credit for ends the command: half of
// the input would be worse than none.
func (d *dialogue) take(in guest.CommandInput) {
	if len(in.Data) > 0 && !d.room.Spend(len(in.Data)+guest.FrameCost) {
		d.giveUp()
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.eof {
		return
	}
	if len(in.Data) > 0 {
		d.input = append(d.input, in.Data)
	}
	d.eof = in.EOF
	offer(d.arrived, struct{}{})
}

// next waits for input; nil is its end, or that of the command.
func (d *dialogue) next() []byte {
	for {
		d.mu.Lock()
		if len(d.input) > 0 {
			data := d.input[0]
			d.input = d.input[1:]
			d.mu.Unlock()
			return data
		}
		eof := d.eof
		d.mu.Unlock()
		if eof {
			return nil
		}
		select {
		case <-d.arrived:
		case <-d.over:
			return nil
		}
	}
}

// feed writes to the command's stdin what comes for it. When the command doesn't want to read any more, the rest is
// thrown away, as the host's side must not wait for ever.
func (d *dialogue) feed(stdin io.WriteCloser) {
	wanted := true
	for data := d.next(); data != nil; data = d.next() {
		if wanted {
			_, err := stdin.Write(data)
			wanted = err == nil
		}
		d.room.Give(len(data) + guest.FrameCost) // before the host knows of it
		d.send(guest.InputCredit{ID: d.spec.ID, Bytes: len(data) + guest.FrameCost})
	}
	if d.spec.TTY {
		_, _ = stdin.Write([]byte{endOfText}) // it fails when the terminal is gone
		return
	}
	_ = stdin.Close() // a pipe: there is nothing that could fail
}

// pump sends the command's output, as fast as the host takes it.
func (d *dialogue) pump(stream string, r deadlineReader) {
	// A frame is encoded before the next one is taken, so that two buffers in turn are never written to too early.
	var bufs [2][guest.MaxCommandData]byte
	for turn := 0; ; turn = 1 - turn {
		if d.exited.Load() {
			_ = r.SetReadDeadline(time.Now().Add(endTimeout))
		}
		n, err := r.Read(bufs[turn][:])
		if n > 0 && d.credit.Take(d.muted, n+guest.FrameCost) {
			d.send(guest.CommandOutput{ID: d.spec.ID, Stream: stream, Data: bufs[turn][:n]})
		}
		if err != nil {
			return // the end, or of a terminal EIO, or it is held open by a process that can't be known
		}
	}
}

// send sends a frame, unless nobody waits for it.
func (d *dialogue) send(m guest.Message) {
	select {
	case d.frames <- m:
	case <-d.muted:
	}
}
