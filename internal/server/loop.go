package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/rollout"
)

const (
	actorServer = "server"
	// maxSteps bounds how often the loop asks for the next step of one deployment before it looks at the
	// others again.
	maxSteps = 8
	// retryAfter is when a step is tried again that the log's fold refused, because something else came first.
	retryAfter = time.Second
)

// loopState is what the loop remembers. Losing it costs a deployment some time and nothing else.
type loopState struct {
	// blocked says since when a deployment has had no place for an instance.
	blocked map[string]*rollout.Blocked
	// attended is since when at least one host has been connected, and this server there, without a break; zero while
	// none is.
	attended time.Time
	// rested is when the loop looked last; while a host is connected it looks again soon. When it has not, this server was
	// away: its process, or its machine, stood still.
	rested time.Time
	// there are the hosts that were connected when the loop looked last.
	there map[string]bool
	// kept are the live deployments that have lacked a host for an instance, or might.
	kept []string
	// active is how many deployments were active when the loop looked last.
	active int
	// sealed are the commands of the one-offs that ran when the loop looked last.
	sealed map[string]bool
}

func newLoopState() loopState {
	return loopState{blocked: map[string]*rollout.Blocked{}, there: map[string]bool{}}
}

// Run decides, until ctx ends or the log cannot be written anymore; then nothing can be trusted that was not
// read from the disk again, and the process is to end. Active deployments go on where they were.
func (s *Server) Run(ctx context.Context) error {
	beside, end := context.WithCancel(ctx)
	var uses sync.WaitGroup
	uses.Go(func() { s.keepUses(beside) })
	defer uses.Wait()
	defer end()
	if err := s.awaitLead(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	leadsNow.Hit()
	if err := s.ensureFirstToken(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("let the first administrator in: %w", err)
	}
	s.tidySealed(ctx)
	s.log.InfoContext(ctx, "control plane runs", "version", s.opts.Version, "cluster", s.ledger.log.ID().String(), "head", s.ledger.log.Head().Seq)
	for {
		next, err := s.step(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control loop: %w", err)
		}
		timer := time.NewTimer(s.until(next))
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		case <-s.ledger.log.Failed():
			err = s.ledger.log.Err()
		case err = <-s.ledger.broken:
		}
		timer.Stop()
		if err != nil {
			return fmt.Errorf("control loop: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// awaitLead waits until this server is the one that decides. Until then it answers questions.
func (s *Server) awaitLead(ctx context.Context) error {
	select {
	case <-s.ledger.log.Leads():
		return nil
	default:
	}
	s.log.InfoContext(ctx, "another server leads; this one follows", "head", s.ledger.log.Head().Seq)
	select {
	case <-s.ledger.log.Leads():
		return nil
	case <-ctx.Done():
		return nil
	case <-s.ledger.log.Failed():
		return fmt.Errorf("follow the event log: %w", s.ledger.log.Err())
	case err := <-s.ledger.broken:
		return fmt.Errorf("follow the event log: %w", err)
	}
}

// until is how long to wait for next; a zero next means a long time, because something will wake the loop.
func (s *Server) until(next time.Time) time.Duration {
	if next.IsZero() {
		return time.Hour
	}
	return max(next.Sub(s.now()), 0)
}

// step looks at everything once, and returns when to look again if nothing wakes the loop.
func (s *Server) step(ctx context.Context) (time.Time, error) {
	now := s.now()
	s.attend(now)
	defer func() { s.loop.rested = s.now() }()
	next := s.observed.nextSilence(now)
	if !s.loop.attended.IsZero() {
		next = s.nextLook(now, next)
	}
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	later, err := s.record(ctx, s.observed.drain())
	if err != nil {
		return time.Time{}, err
	}
	if later { // the hosts say it again
		sooner(now.Add(retryAfter))
	}
	var active []*fleet.Deployment
	s.ledger.read(func(st *fleet.State) { active = st.ActiveDeployments() })
	s.forgetFinished(active)
	each := func(deployment string, do func(context.Context, string) (time.Time, error)) error {
		s.placing.Lock()
		wake, err := do(ctx, deployment)
		s.placing.Unlock()
		if isRejected(err) {
			s.log.WarnContext(ctx, "step refused by the state", "deployment", deployment, "error", err)
			wake, err = now.Add(retryAfter), nil
		}
		if s.tryLater(ctx, err) {
			wake, err = now.Add(retryAfter), nil
		}
		sooner(wake)
		return err
	}
	for _, d := range active {
		if err := each(d.ID, s.advance); err != nil {
			return time.Time{}, fmt.Errorf("advance deployment %s: %w", d.ID, err)
		}
	}
	for _, id := range s.troubled(now) {
		if err := each(id, s.keep); err != nil {
			return time.Time{}, fmt.Errorf("keep up deployment %s: %w", id, err)
		}
	}
	wake, err := s.tendRuns(ctx, now)
	if err != nil {
		return time.Time{}, fmt.Errorf("look after one-offs: %w", err)
	}
	sooner(wake)
	s.waits.publish(s.loop.blocked)
	return next, nil
}

// nextLook is when to look again while hosts are connected, at the latest: half of what attend takes for an absence.
func (s *Server) nextLook(now, next time.Time) time.Time {
	soon := now.Add(s.opts.HostTimeout / 4)
	if next.IsZero() || soon.Before(next) {
		return soon
	}
	return next
}

// attend notes since when somebody has been there to carry decisions out. A server that stood still for a while finds
// that it has heard of nobody: all of them get the time to be heard of again.
func (s *Server) attend(now time.Time) {
	if !s.loop.rested.IsZero() && now.Sub(s.loop.rested) > s.opts.HostTimeout/2 {
		s.loop.attended = time.Time{}
	}
	there := s.observed.there(now)
	var flipped []string
	for host := range there {
		if !s.loop.there[host] {
			flipped = append(flipped, host)
		}
	}
	for host := range s.loop.there {
		if !there[host] {
			flipped = append(flipped, host)
		}
	}
	s.loop.there = there
	if len(flipped) > 0 {
		s.feeds.cameOrWent(flipped)
	}
	switch {
	case len(there) == 0:
		s.loop.attended = time.Time{}
	case s.loop.attended.IsZero(), s.loop.attended.After(now): // the clock was set back
		s.loop.attended = now
	}
}

// forgetFinished drops what is remembered for deployments and instances that are over.
func (s *Server) forgetFinished(active []*fleet.Deployment) {
	if len(active) != s.loop.active {
		s.loop.active = len(active)
		s.ledger.read(func(st *fleet.State) {
			s.observed.forget(func(id string) bool { return st.Instance(id) != nil })
		})
	}
	still := make(map[string]bool, len(active))
	for _, d := range active {
		still[d.ID] = true
	}
	for _, id := range s.loop.kept {
		still[id] = true
	}
	for id := range s.loop.blocked {
		if !still[id] {
			delete(s.loop.blocked, id)
		}
	}
}

// isRejected reports whether the fold refused an event. Nothing was appended then.
func isRejected(err error) bool {
	_, ok := errors.AsType[*eventlog.RejectedError](err)
	return ok
}

// tryLater reports whether the log could not take an event now and has none of it, because its disk is full, for example.
// Everything goes on as it is then, and the decision is made again.
func (s *Server) tryLater(ctx context.Context, err error) bool {
	if !errors.Is(err, eventlog.ErrNotCommitted) {
		return false
	}
	s.log.ErrorContext(ctx, "the event log takes nothing; trying again", "error", err)
	return true
}

// advance brings one deployment as far as it goes now, and returns when to look at it again.
func (s *Server) advance(ctx context.Context, deployment string) (time.Time, error) {
	for range maxSteps {
		now := s.now()
		view := s.view(deployment, now)
		if view == nil {
			return time.Time{}, nil // it has ended
		}
		if d := s.rotating(deployment); d != nil {
			return s.rotate(ctx, d, now)
		}
		actions, wake := rollout.Next(*view, now)
		events, blocked, err := s.carryOut(deployment, actions, now)
		if err != nil {
			return time.Time{}, err
		}
		if blocked == nil {
			delete(s.loop.blocked, deployment)
		} else if s.loop.blocked[deployment] == nil {
			s.log.WarnContext(ctx, "no place for an instance", "deployment", deployment, "reason", blocked.Reason)
			s.loop.blocked[deployment] = blocked
			continue // so that Next says how long it bears that
		}
		if len(events) == 0 {
			return wake, nil
		}
		if err := s.ledger.append(ctx, actorServer, "", events...); err != nil {
			return time.Time{}, err
		}
	}
	return s.now(), nil
}
