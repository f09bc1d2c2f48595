package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// readControl handles what the guest says on the control channel.
func (h *Host) readControl(ctx context.Context) error {
	r := NewReader(h.control, MaxGuestFrame)
	pace := newPace(h.opts.ControlFramesPerSecond)
	if h.opts.Resume {
		hello, err := awaitAnswer(ctx, r, h.opts.LogBytesPerSecond, func(a Hello) bool { return a.Token == h.token })
		if err != nil {
			return readErr("control", err)
		}
		if err := h.handle(hello); err != nil {
			return brokenErr("control", err)
		}
	}
	for {
		if err := pace.take(ctx, 1); err != nil {
			return err
		}
		t, body, err := r.Next()
		if err != nil {
			return readErr("control", err)
		}
		select { // whatever it is, it is a sign of life
		case h.beat <- struct{}{}:
		default:
		}
		m, err := Decode(t, body)
		if errors.Is(err, ErrUnknownType) {
			continue
		}
		if err == nil {
			err = h.handle(m)
		}
		if err != nil {
			return brokenErr("control", err)
		}
	}
}

// awaitAnswer reads up to the answer to this session's first frame: behind a restart mark, and the one that is wanted.
// Whatever else comes was meant for an earlier session, and may begin or end anywhere.
func awaitAnswer[M Message](ctx context.Context, r *Reader, bytesPerSecond int, wanted func(M) bool) (M, error) {
	var none M
	pace := newPace(bytesPerSecond)
	for {
		if err := r.SkipToRestart(func(n int) error { return pace.take(ctx, n) }); err != nil {
			return none, err
		}
		t, body, err := r.Next()
		switch {
		case errors.Is(err, ErrFrame):
			continue
		case err != nil:
			return none, err
		}
		if err := pace.take(ctx, len(body)+64); err != nil {
			return none, err
		}
		m, err := Decode(t, body)
		if answer, ok := m.(M); err == nil && ok && wanted(answer) {
			return answer, nil
		}
	}
}

// handle moves the session's state by one message; a message that can't come now breaks the protocol.
func (h *Host) handle(m Message) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, isHello := m.(Hello); !isHello && h.hello == nil {
		return fmt.Errorf("%T before Hello", m)
	}
	switch m := m.(type) {
	case Hello:
		if h.hello != nil {
			return errors.New("a second Hello")
		}
		if m.Version < MinVersion || m.Version > Version {
			return fmt.Errorf("the guest speaks version %d of the protocol, this host %d to %d", m.Version, MinVersion, Version)
		}
		if h.opts.Nonce != "" && m.Nonce != h.opts.Nonce {
			return fmt.Errorf("the guest is of another boot (nonce %s, not %s)", m.Nonce, h.opts.Nonce)
		}
		h.hello = &m
		close(h.helloc)
	case Started:
		if h.started != nil || h.failed != nil {
			return errors.New("a second answer to Config")
		}
		h.started = &m
		close(h.startc)
	case Failed:
		if h.failed != nil {
			return nil // sent until acknowledged
		}
		if h.started != nil {
			return errors.New("Failed after Started")
		}
		h.failed = &m
		close(h.startc)
	case Exit:
		if h.exit != nil {
			return nil // sent until acknowledged
		}
		if h.started == nil {
			return errors.New("Exit before Started")
		}
		h.exit = &m
		h.exitc <- m
		close(h.exited)
		h.noteDrained()
	case ExecResult:
		if answer, ok := h.execs[m.ID]; ok {
			delete(h.execs, m.ID)
			answer <- m
		}
	case Bundled:
		key := bundleKey{m.Name, m.Version}
		if answer, ok := h.bundles[key]; ok {
			delete(h.bundles, key)
			answer <- m
		}
	case Frozen:
		if answer, ok := h.freezes[m.ID]; ok {
			delete(h.freezes, m.ID)
			answer <- m
		}
	case Stats:
		h.answered(m.ID, m)
	case Clock:
		h.answered(m.ID, m)
	case Heartbeat:
	default:
		return fmt.Errorf("%T does not belong on the control channel", m)
	}
	return nil
}

// noteDrained is called with mu held whenever exit or lastLine has changed.
func (h *Host) noteDrained() {
	if h.exit != nil && !h.isDrained && h.lastLine >= h.exit.LastLine {
		h.isDrained = true
		close(h.drained)
	}
}

// watchHeartbeat ends the session when the guest is silent for too long after its hello. Before, the caller of Hello
// has a deadline of its own.
func (h *Host) watchHeartbeat(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-h.helloc:
	}
	silence := time.NewTimer(h.opts.HeartbeatTimeout)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.beat:
			silence.Reset(h.opts.HeartbeatTimeout)
		case <-silence.C:
			return ErrSilent
		}
	}
}

// readLogs hands lines to Options.Logs.
func (h *Host) readLogs(ctx context.Context) error {
	r := NewReader(h.logs, MaxGuestFrame)
	pace := newPace(h.opts.LogBytesPerSecond)
	if h.opts.Resume {
		answer, err := awaitAnswer(ctx, r, h.opts.LogBytesPerSecond, func(a Resumed) bool { return a.Token == h.token })
		if err != nil {
			return readErr("logs", err)
		}
		if answer.Next > h.opts.AfterLine+1 {
			return brokenErr("logs", fmt.Errorf("the lines go on with %d after %d", answer.Next, h.opts.AfterLine))
		}
	}
	close(h.logsReady)
	b := lineBatch{last: h.opts.AfterLine}
	for {
		t, body, err := r.Next()
		if err != nil {
			return readErr("logs", err)
		}
		// Small frames cost more than their bytes.
		if err := pace.take(ctx, len(body)+64); err != nil {
			return err
		}
		if err := h.handleLog(&b, t, body); err != nil {
			return brokenErr("logs", err)
		}
		if r.ready() && len(b.lines) < maxLineBatch {
			continue
		}
		if err := h.keep(&b); err != nil {
			return brokenErr("logs", err)
		}
	}
}

// maxLineBatch is how many lines are handed on together at most.
const maxLineBatch = 256

// A lineBatch is the lines that have come and are not kept yet.
type lineBatch struct {
	lines []Line
	data  []byte // of the lines
	last  uint64 // number of the last line, kept or not
}

// handleLog takes up a frame of the logs channel.
func (h *Host) handleLog(b *lineBatch, t Type, body []byte) error {
	if t == TypeLine {
		if line, data, ok := parseLine(body, b.data); ok {
			b.data = data
			return h.handleLine(b, line)
		}
	}
	m, err := Decode(t, body)
	if errors.Is(err, ErrUnknownType) {
		return nil
	}
	if err != nil {
		return err
	}
	if line, ok := m.(Line); ok {
		return h.handleLine(b, line)
	}
	return h.handleCommand(m)
}

func (h *Host) handleLine(b *lineBatch, line Line) error {
	switch {
	case line.Seq <= b.last:
		h.wakeAcks()
		return nil // we have it: its acknowledgement was lost with an earlier session
	case line.Seq != b.last+1:
		return fmt.Errorf("line %d after line %d", line.Seq, b.last)
	}
	b.last = line.Seq
	b.lines = append(b.lines, line)
	return nil
}

// keep hands a batch to Options.Logs, and is done with it.
func (h *Host) keep(b *lineBatch) error {
	if len(b.lines) == 0 {
		return nil
	}
	if err := h.opts.Logs(b.lines); err != nil {
		return &keepError{b.lines[0].Seq, err}
	}
	b.lines, b.data = b.lines[:0], b.data[:0]
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastLine = b.last
	h.noteDrained()
	h.wakeAcks()
	return nil
}

func (h *Host) wakeAcks() {
	select {
	case h.lineKept <- struct{}{}:
	default:
	}
}

// sendAcks tells the guest which lines are kept: at once, then with a pause, because one acknowledgement covers all
// lines before it.
func (h *Host) sendAcks(ctx context.Context) error {
	const pause = 20 * time.Millisecond
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-rest.C:
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.lineKept:
		}
		h.mu.Lock()
		last := h.lastLine
		h.mu.Unlock()
		if err := h.sendLogs(Ack{Seq: last}); err != nil {
			return fmt.Errorf("logs channel: acknowledge line %d: %w", last, err)
		}
		rest.Reset(pause)
	}
}

// keepError is a failure of ours, not of the guest.
type keepError struct {
	seq uint64
	err error
}

func (e *keepError) Error() string { return fmt.Sprintf("keep log line %d: %v", e.seq, e.err) }
func (e *keepError) Unwrap() error { return e.err }

// readErr names the channel that ended, and blames the guest when it ended in bytes that are no frame.
func readErr(channel string, err error) error {
	if errors.Is(err, ErrFrame) {
		return brokenErr(channel, err)
	}
	return fmt.Errorf("%s channel: %w", channel, err)
}

func brokenErr(channel string, err error) error {
	if _, ok := errors.AsType[*keepError](err); ok {
		return err
	}
	return fmt.Errorf("%s channel: %w: %w", channel, ErrProtocol, err)
}

func newSeed() []byte {
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // documented never to fail
	return seed
}
