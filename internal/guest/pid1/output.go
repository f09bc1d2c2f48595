//go:build linux

package pid1

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	ringBytes = 1 << 20 // of lines that the host has not acknowledged
	lineCost  = 128     // what a line takes besides its data
	// blockFor is how long a writer of the workload waits when the ring is full. Then lines are dropped and counted.
	blockFor = 10 * time.Second
	// flushAfter sends a line that is not complete yet, such as a prompt or a row of dots.
	flushAfter  = 500 * time.Millisecond
	batchBytes  = 32 << 10 // of lines that go to the port in one write
	batchFrames = 4        // of commands, likewise
)

// output carries the workload's lines to the host: pumps put them into a ring, a sender takes them from there, and the
// host's acknowledgements free them.
type output struct {
	port  io.ReadWriter
	pumps sync.WaitGroup
	fresh chan struct{} // wakes the sender
	// commands share the channel. Their frames are taken a few at a time between the lines, so that neither waits long
	// for the other.
	commands *commands

	mu      sync.Mutex // guards what follows
	lines   []guest.Line
	resumed *guest.Resumed // answers a host that has taken up the session; nil when that is done
	sent    int            // how many of lines the sender has taken
	bytes   int
	lastSeq uint64
	lossy   bool              // a writer has waited in vain: drop until there is room
	dropped map[string]uint64 // lines of each stream that no marker counts yet
	freed   chan struct{}     // closed, and made anew, when room was made
}

func newOutput(port io.ReadWriter) *output {
	return &output{port: port, fresh: make(chan struct{}, 1), commands: newCommands(), dropped: map[string]uint64{}, freed: make(chan struct{})}
}

// follow reads the workload's stream from r until its last writer is gone.
func (o *output) follow(stream string, r *os.File) {
	o.pumps.Add(1)
	safely("pump of "+stream, func() {
		o.pump(stream, r)
		// Neither after a panic. The workload would die of its broken pipe, or its output would seem to be complete, and
		// its end could be told before what has happened.
		_ = r.Close()
		o.pumps.Done()
	})
}

// deadlineReader is the reading end of a pipe.
type deadlineReader interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

func (o *output) pump(stream string, r deadlineReader) {
	buf := make([]byte, 0, guest.MaxLine)
	for {
		deadline := time.Time{}
		if len(buf) > 0 {
			deadline = time.Now().Add(flushAfter)
		}
		_ = r.SetReadDeadline(deadline) // without deadlines only the early flush is missing
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = o.putLines(stream, buf[:len(buf)+n])
		idle := errors.Is(err, os.ErrDeadlineExceeded)
		ended := err != nil && !idle
		if len(buf) == cap(buf) || (len(buf) > 0 && (idle || ended)) {
			o.put(stream, buf, true)
			buf = buf[:0]
		}
		if ended {
			return
		}
	}
}

// putLines puts all complete lines of buf and moves the rest to its start.
func (o *output) putLines(stream string, buf []byte) []byte {
	rest := buf
	for {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			break
		}
		o.put(stream, line, false)
		rest = after
	}
	return buf[:copy(buf, rest)]
}

// put adds a line to the ring, waiting for room.
func (o *output) put(stream string, data []byte, partial bool) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	trap("line")
	for o.bytes+len(data)+lineCost > ringBytes {
		wait := blockFor - time.Since(now)
		if o.lossy || wait <= 0 {
			o.lossy = true
			o.dropped[stream]++
			return
		}
		o.waitForRoom(wait)
	}
	o.add(guest.Line{Time: now.UnixNano(), Stream: stream, Data: bytes.Clone(data), Partial: partial})
}

// waitForRoom is called with mu held, and gives it away while it waits.
func (o *output) waitForRoom(limit time.Duration) {
	freed := o.freed
	o.mu.Unlock()
	defer o.mu.Lock()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-freed:
	case <-late.C:
	}
}

// add is called with mu held.
func (o *output) add(l guest.Line) {
	o.lastSeq++
	l.Seq = o.lastSeq
	o.lines = append(o.lines, l)
	o.bytes += len(l.Data) + lineCost
	offer(o.fresh, struct{}{})
}

// markDropped puts markers for what was dropped. It is called with mu held.
func (o *output) markDropped() {
	o.lossy = false
	for stream, n := range o.dropped {
		o.add(guest.Line{Time: time.Now().UnixNano(), Stream: stream, Dropped: n})
		delete(o.dropped, stream)
	}
}

// ack frees all lines up to seq.
func (o *output) ack(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.free(seq)
}

// resume begins again with the lines behind those that a host has, whatever another had been sent.
func (o *output) resume(r guest.Resume) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.free(r.After)
	o.sent = 0
	next := o.lastSeq + 1
	if len(o.lines) > 0 {
		next = o.lines[0].Seq
	}
	o.resumed = &guest.Resumed{Token: r.Token, Next: next}
	offer(o.fresh, struct{}{})
}

// free forgets the lines up to seq that were sent. It is called with mu held.
func (o *output) free(seq uint64) {
	n := 0
	for n < o.sent && o.lines[n].Seq <= seq {
		o.bytes -= len(o.lines[n].Data) + lineCost
		n++
	}
	if n == 0 {
		return
	}
	clear(o.lines[:n]) // the array lives on for a while; their data should not
	o.lines = o.lines[n:]
	o.sent -= n
	o.markDropped()
	close(o.freed)
	o.freed = make(chan struct{})
}

// finish waits until both streams have ended, for as long as limit, and returns the number of the last line.
func (o *output) finish(limit time.Duration) uint64 {
	ended := make(chan struct{})
	safely("end of output", func() { o.pumps.Wait(); close(ended) })
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.markDropped()
	return o.lastSeq
}

// drain waits until the host has everything, for as long as limit.
func (o *output) drain(limit time.Duration) {
	deadline := time.Now().Add(limit)
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.lines) > 0 {
		wait := time.Until(deadline)
		if wait <= 0 {
			return
		}
		o.waitForRoom(wait)
	}
}

// send takes lines from the ring, and frames of commands, to the port.
func (o *output) send() {
	var batch []byte
	for {
		batch = o.addFrames(o.nextBatch(batch[:0]))
		if len(batch) == 0 {
			select {
			case _, open := <-o.fresh:
				if !open {
					return
				}
				continue
			case m := <-o.commands.frames:
				batch = addFrame(batch, m)
			}
		}
		if _, err := o.port.Write(batch); err != nil {
			logf(logError, "log channel: %v", err)
			return
		}
	}
}

// addFrames adds the frames of commands that wait.
func (o *output) addFrames(batch []byte) []byte {
	for range batchFrames {
		select {
		case m := <-o.commands.frames:
			batch = addFrame(batch, m)
		default:
			return batch
		}
	}
	return batch
}

func addFrame(batch []byte, m guest.Message) []byte {
	longer, err := guest.Encode(batch, m)
	if err != nil {
		logf(logError, "log channel: %v", err) // can't be: they are short
		return batch
	}
	return longer
}

func (o *output) nextBatch(batch []byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	if o.resumed != nil {
		if batch, err = guest.Encode(guest.AppendRestart(batch), *o.resumed); err != nil {
			logf(logError, "log channel: %v", err) // can't be: it is short
		}
		o.resumed = nil
	}
	for o.sent < len(o.lines) && len(batch) < batchBytes {
		if batch, err = guest.Encode(batch, o.lines[o.sent]); err != nil {
			logf(logError, "log channel: %v", err) // can't be: lines are short
		}
		o.sent++
	}
	return batch
}

// readAcks takes the host's acknowledgements, its side of the commands, and where a host begins that takes up the session.
func (o *output) readAcks() {
	r := guest.NewRestartableReader(o.port, guest.MaxHostFrame)
	for {
		t, body, err := r.Next()
		if err != nil {
			logf(logError, "log channel: %v", err)
			return
		}
		m, err := guest.Decode(t, body)
		if errors.Is(err, guest.ErrUnknownType) {
			continue
		}
		if err != nil {
			logf(logError, "log channel: %v", err)
			continue
		}
		o.commands.hear()
		switch m := m.(type) {
		case guest.Ack:
			o.ack(m.Seq)
		case guest.Resume:
			o.commands.reset() // they belong to a session that is over
			o.resume(m)
		default:
			o.commands.handle(m)
		}
	}
}
