package server

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

const (
	// keptJournals is of how many deployments the transitions can be watched.
	keptJournals = 64
	// maxLines bounds the transitions of one deployment; the last ones are kept free for its end.
	maxLines = 2000
)

const (
	levelInfo  = "info"
	levelError = "error"
)

// journals hold the transitions of the latest deployments in words. What came from the log is told again when
// the server starts; what only reports said (pulling, starting) is not.
type journals struct {
	mu    sync.Mutex
	lines map[string][]*pb.WatchDeploymentResponse // guarded by mu
	order []string                                 // guarded by mu; oldest first
	// told is the last state of an instance that was told, so that a repeated report is no transition.
	told map[string]string // guarded by mu
	// boot tells what this server heard in reports from what it heard before it was started again.
	boot string
}

func newJournals() *journals {
	return &journals{boot: rand.Text()[:8], lines: map[string][]*pb.WatchDeploymentResponse{}, told: map[string]string{}}
}

func (j *journals) begin(deployment string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines[deployment] = nil
	j.order = append(j.order, deployment)
	if len(j.order) > keptJournals {
		delete(j.lines, j.order[0])
		j.order = slices.Delete(j.order, 0, 1)
	}
}

// add adds a line that the event seq tells, or a report when it is 0.
func (j *journals) add(deployment string, seq uint64, line *pb.WatchDeploymentResponse) {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines, kept := j.lines[deployment]
	if !kept || (len(lines) >= maxLines && line.GetInstance() != "") {
		return
	}
	var last position
	if len(lines) > 0 {
		last, _ = parsePosition(lines[len(lines)-1].GetPosition())
	}
	line.Position = last.next(seq, j.boot).String()
	j.lines[deployment] = append(lines, line)
}

// since returns the lines of a deployment after the first n.
func (j *journals) since(deployment string, n int) []*pb.WatchDeploymentResponse {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines[deployment]
	return slices.Clone(lines[min(n, len(lines)):])
}

// behind is how many lines of a deployment come up to and with a position.
func (j *journals) behind(deployment string, p position) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines[deployment]
	at := make([]position, len(lines))
	for i, line := range lines {
		at[i], _ = parsePosition(line.GetPosition())
	}
	if i := slices.Index(at, p); i >= 0 {
		return i + 1
	}
	if i := slices.IndexFunc(at, func(line position) bool { return line.after(p) }); i >= 0 {
		return i
	}
	return len(lines)
}

// repeats notes the state of an instance and reports whether it was the last one that was told.
func (j *journals) repeats(instance, state string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.told[instance] == state {
		return true
	}
	j.told[instance] = state
	return false
}

func (j *journals) forget(instance string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.told, instance)
}

// narrate puts an event into words, in the journal of the deployment that it belongs to.
func (s *Server) narrate(e entry) {
	d := e.deployment
	if d == nil {
		return
	}
	say := func(level, instance, text string, tail ...string) {
		s.journals.add(d.ID, e.seq, &pb.WatchDeploymentResponse{
			At: timestamppb.New(e.at), Text: text, Instance: instance, Level: level, LogTail: tail,
		})
	}
	switch p := e.payload.(type) {
	case *fleet.DeploymentStarted:
		s.journals.begin(d.ID)
		say(levelInfo, "", opening(d))
	case *fleet.InstancesPlanned:
		for _, i := range p.Start {
			what := "instance"
			if i.Task {
				what = "rollout.before, as instance"
			}
			say(levelInfo, i.Instance, fmt.Sprintf("%s %s placed on %s", what, i.Instance, i.Host))
		}
		for _, id := range p.Stop {
			say(levelInfo, id, fmt.Sprintf("instance %s is asked to stop", id))
		}
	case *fleet.InstanceReady:
		text := fmt.Sprintf("instance %s ready in %s", p.Instance, seconds(e.at.Sub(bornAt(e.instance))))
		if e.hold > 0 {
			text += fmt.Sprintf(", holding for %s", e.hold)
		}
		say(levelInfo, p.Instance, text)
	case *fleet.InstanceEnded:
		s.narrateEnd(e, p, say)
	case *fleet.DeploymentPaused:
		say(levelInfo, "", "paused; pinnace resume goes on, pinnace abort turns it back")
	case *fleet.DeploymentResumed:
		say(levelInfo, "", "resumed")
	case *fleet.DeploymentSwitched:
		say(levelInfo, "", fmt.Sprintf("all are ready: connections are led to %s", d.Release.Short()))
	case *fleet.DeploymentTurnedBack:
		say(levelError, "", "rolling back because "+p.Reason)
	case *fleet.DeploymentFinished:
		level, text := closing(d)
		say(level, "", text)
	}
}

func (s *Server) narrateEnd(e entry, p *fleet.InstanceEnded, say func(level, instance, text string, tail ...string)) {
	switch {
	case e.instance.Stop:
		if p.Final {
			say(levelInfo, p.Instance, fmt.Sprintf("instance %s stopped", p.Instance))
		}
	case e.instance.Completed():
		say(levelInfo, p.Instance, fmt.Sprintf("instance %s completed", p.Instance))
	default:
		text := fmt.Sprintf("instance %s ended: %s", p.Instance, describe(p.Cause))
		if !p.Final {
			text += fmt.Sprintf(" (attempt %d)", p.Attempt)
		}
		var tail []string
		if seen := s.observed.instance(p.Instance); seen.lastEndAttempt == p.Attempt {
			tail = tailOf(seen.lastEnd)
		}
		say(levelError, p.Instance, text, tail...)
	}
	if p.Final {
		s.journals.forget(p.Instance)
	}
}

// Bounds of the last log lines of an instance that are shown, in lines and bytes.
const (
	maxTailLines = 50
	maxTailLine  = 4096
)

func tailOf(c *pb.Cause) []string {
	lines := c.GetLogTail()
	lines = slices.Clone(lines[max(0, len(lines)-maxTailLines):])
	for i, l := range lines {
		lines[i] = l[:min(len(l), maxTailLine)]
	}
	return lines
}

// narrateReport puts what only a report says into words: pulling, starting, and what keeps it waiting.
func (s *Server) narrateReport(d *fleet.Deployment, i *fleet.Instance, r *pb.InstanceReport, now time.Time) {
	switch r.GetState() {
	case stateReady, stateEnded, statePlaced, stateStopping, "started", "":
		return // events tell these, or they say nothing yet
	}
	key := fmt.Sprintf("%s/%d/%s", r.GetState(), r.GetAttempt(), phase(r))
	if i.Stop || s.journals.repeats(i.ID, key) {
		return
	}
	text := fmt.Sprintf("instance %s %s", i.ID, cut(r.GetState()))
	if m := r.GetMessage(); m != "" {
		text += ": " + cut(m)
	}
	s.journals.add(d.ID, 0, &pb.WatchDeploymentResponse{At: timestamppb.New(now), Text: text, Instance: i.ID, Level: levelInfo})
}

// phase tells messages apart that are transitions from those that count up, such as the bytes of a pull.
func phase(r *pb.InstanceReport) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c == '.' {
			return -1
		}
		return c
	}, r.GetMessage())
}

func opening(d *fleet.Deployment) string {
	switch d.Kind {
	case fleet.KindStop:
		return fmt.Sprintf("deployment %s: stop %s in %s", d.ID, d.App, d.Environment)
	case fleet.KindSettings:
		return fmt.Sprintf("deployment %s: %s in %s gets its changed settings", d.ID, d.App, d.Environment)
	case fleet.KindSecrets:
		return fmt.Sprintf("deployment %s: %s in %s gets its changed secrets in place", d.ID, d.App, d.Environment)
	case fleet.KindRestart:
		return fmt.Sprintf("deployment %s: restart %s in %s", d.ID, d.App, d.Environment)
	case fleet.KindScale:
		return fmt.Sprintf("deployment %s: scale %s in %s to %d", d.ID, d.App, d.Environment, d.Count)
	case fleet.KindRollback:
		return fmt.Sprintf("deployment %s: roll %s in %s back to %s of deployment %s", d.ID, d.App, d.Environment, d.Release.Short(), d.Target)
	case fleet.KindDeploy:
	}
	return fmt.Sprintf("deployment %s: deploy %s of %s to %s", d.ID, d.Release.Short(), d.App, d.Environment)
}

func closing(d *fleet.Deployment) (level, text string) {
	because := ""
	if d.Reason != "" {
		because = ": " + d.Reason
	}
	switch {
	case d.State == fleet.Succeeded && d.Kind == fleet.KindStop:
		return levelInfo, fmt.Sprintf("%s is stopped%s", d.App, because)
	case d.State == fleet.Succeeded && d.Kind == fleet.KindScale:
		return levelInfo, fmt.Sprintf("%s: there are %d now%s", d.App, d.Count, because)
	case d.State == fleet.Succeeded && d.Kind == fleet.KindSecrets:
		return levelInfo, fmt.Sprintf("%s runs on; its hosts bring it the new secrets", d.App)
	case d.State == fleet.Succeeded:
		return levelInfo, fmt.Sprintf("%s of %s serves%s", d.Release.Short(), d.App, because)
	case d.State == fleet.RolledBack:
		return levelError, fmt.Sprintf("rolled back; what served before serves again. The cause was%s", because)
	case d.State == fleet.Mixed:
		return levelError, "ended mixed" + because
	default:
		return levelError, "failed" + because
	}
}

// bornAt is when the wait for an instance to become ready began: with its placement, or with the VM of a
// later attempt.
func bornAt(i *fleet.Instance) time.Time {
	if i.ReadyAttempt > 1 && !i.StartedAt.IsZero() {
		return i.StartedAt
	}
	return i.PlacedAt
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
