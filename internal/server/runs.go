package server

import (
	"context"
	"fmt"
	"time"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// tendRuns ends the one-offs whose time is over or whose host is lost, and destroys the commands of those that have ended.
// It returns when to look again.
func (s *Server) tendRuns(ctx context.Context, now time.Time) (next time.Time, err error) {
	var runs []*fleet.Instance
	s.ledger.read(func(st *fleet.State) { runs = st.Runs("", "") })
	sealed := make(map[string]bool, len(runs))
	for _, i := range runs {
		sealed[i.Run.Sealed] = true
	}
	for digest := range s.loop.sealed {
		if !sealed[digest] {
			s.removeSealed(ctx, digest)
		}
	}
	s.loop.sealed = sealed
	for _, i := range runs {
		event, wake := s.tendRun(i, now)
		if event != nil {
			err := s.ledger.append(ctx, actorServer, "", event)
			if isRejected(err) { // it has ended meanwhile, or somebody else has stopped it
				s.log.WarnContext(ctx, "step refused by the state", "instance", i.ID, "error", err)
				wake, err = now.Add(retryAfter), nil
			}
			if s.tryLater(ctx, err) {
				wake, err = now.Add(retryAfter), nil
			}
			if err != nil {
				return time.Time{}, err
			}
		}
		if !wake.IsZero() && (next.IsZero() || wake.Before(next)) {
			next = wake
		}
	}
	return next, nil
}

// tendRun is what is due for a one-off, and when to look at it again.
func (s *Server) tendRun(i *fleet.Instance, now time.Time) (event fleet.Payload, wake time.Time) {
	deadline := i.Run.Deadline
	if i.PlacedAt.After(now) { // by a clock that was ahead
		deadline = s.loop.attended.Add(i.Run.Timeout)
	}
	away := s.awaySince(i.Host, now)
	switch on, _ := s.observed.connected(i.Host, now); {
	case !away.IsZero() && !now.Before(away.Add(s.opts.LostAfter)):
		return lostRun(i, now.Sub(away)), time.Time{}
	case !i.Stop && !s.loop.attended.IsZero() && !now.Before(deadline):
		return &fleet.RunStopped{Instance: i.ID, Reason: fmt.Sprintf("its timeout of %s was over", i.Run.Timeout), TimedOut: true}, time.Time{}
	case !away.IsZero():
		wake = away.Add(s.opts.LostAfter)
	case !on && !s.loop.attended.IsZero(): // it begins to count as away when it could have been heard of for long enough
		wake = now.Add(s.opts.HostTimeout)
	}
	if !i.Stop && !s.loop.attended.IsZero() && (wake.IsZero() || deadline.Before(wake)) {
		wake = deadline
	}
	return nil, wake
}

// lostRun ends a one-off whose host is lost. It may have run, to its end too, or run still where nobody hears of it: it is
// never started again.
func lostRun(i *fleet.Instance, away time.Duration) *fleet.InstanceEnded {
	return &fleet.InstanceEnded{
		Instance: i.ID, Attempt: max(i.StartedAttempt, i.EndedAttempt), Count: max(i.StartedAttempt, i.EndedAttempt) - i.EndedAttempt, Final: true,
		Cause: fleet.Cause{Kind: "lost", Detail: fmt.Sprintf("host %s has been away for %s; how far it came is not known, and it is not started again", i.Host, away.Round(time.Second))},
	}
}

// deliverRun puts the command of a one-off into its assignment. When it cannot be opened, a host that has not begun gets
// nothing, so that it waits; one that has, and knows the command, gets what could not be run.
func (s *Server) deliverRun(asg *pb.Assignment, open func(digest string, want sealedText) map[string][]byte) (deliver bool) {
	var i *fleet.Instance
	s.ledger.read(func(st *fleet.State) { i = st.Instance(asg.GetInstance()) })
	if i == nil || i.Final {
		return false // the next set does not have it
	}
	values := open(asg.GetTask()[0], sealedText{Kind: sealedRun, Environment: asg.GetEnvironment(), Name: asg.GetInstance()})
	argv, err := runWords(values)
	if err == nil {
		asg.Task = argv
		return true
	}
	return i.StartedAttempt > 0 || s.observed.instance(i.ID).report != nil
}
