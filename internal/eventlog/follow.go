package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Leads is closed when this log appends: at once, unless it was opened to follow.
func (l *Log) Leads() <-chan struct{} { return l.leads }

// cannotLead is why a log that does not lead takes no append.
func (l *Log) cannotLead() error {
	select {
	case <-l.failed:
		return l.Err()
	case <-l.stopping:
		return ErrClosed
	default:
		return ErrFollowing
	}
}

// follow tails what another owner commits until this log may lead, and tells whether it does. What cannot be
// read now is read later: a store that is away is no reason to stop serving what was read.
func (l *Log) follow(ctx context.Context) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-l.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	var wake <-chan struct{}
	if w, ok := l.engine.(Waker); ok {
		wake = w.Wake()
	}
	tick := time.NewTicker(l.opts.Poll)
	defer tick.Stop()
	v := &verifier{head: l.w.head, time: l.w.time, versions: l.w.versions}
	for {
		lead, err := l.takeTurn(ctx, v)
		if l.ends(ctx, err) {
			return false
		}
		if lead {
			l.w.head, l.w.time, l.w.versions = v.head, v.time, v.versions
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		case <-wake:
		}
	}
}

// ends tells whether err is one after which nothing more can be followed, and fails the log then.
func (l *Log) ends(ctx context.Context, err error) bool {
	var regression *RegressionError
	var broken *VerifyError
	switch {
	case ctx.Err() != nil:
		return true
	case errors.As(err, &regression), errors.As(err, &broken), errors.Is(err, ErrBroken):
		_ = l.fail(err)
		return true
	}
	return false
}

// takeTurn reads what is new, and tries to lead.
func (l *Log) takeTurn(ctx context.Context, v *verifier) (lead bool, err error) {
	looked := time.Now()
	if err := l.catchUp(ctx, v); err != nil {
		return false, err
	}
	l.saw(looked)
	lost, err := l.engine.Lead(ctx)
	if errors.Is(err, ErrHeld) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	openLeads.Hit()
	// Nobody else commits from here on. What was committed up to here must be known before anything is
	// appended to it, so there is no way back but to fail.
	if err := l.catchUp(ctx, v); err != nil {
		return false, fmt.Errorf("%w: read the log before leading it: %w", ErrBroken, err)
	}
	l.lost = lost
	return true, nil
}

// catchUp reads the events that were committed since the last time. A store that has lost some is found out,
// whether they are missing or others are in their place.
func (l *Log) catchUp(ctx context.Context, v *verifier) error {
	head, err := l.engine.Head(ctx)
	if err != nil {
		return err
	}
	if head.Seq < v.head.Seq || head.Seq == v.head.Seq && head.Hash != v.head.Hash {
		return &RegressionError{Seen: v.head, Have: head}
	}
	for events, err := range l.chunks(ctx, v.head.Seq, head.Seq) {
		if err != nil {
			return err
		}
		for i := range events {
			if err := v.next(&events[i]); err != nil {
				return fmt.Errorf("follow: %w", err)
			}
			l.w.remember(&events[i])
		}
		l.publish(events)
	}
	return nil
}
