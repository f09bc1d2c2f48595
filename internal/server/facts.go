package server

import (
	"fmt"
	"time"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// States of an instance as agents report them and people see them.
const (
	statePlaced   = "placed"
	stateReady    = "ready"
	stateStopping = "stopping"
	stateEnded    = "ended"
	stateUnknown  = "unknown"
)

const (
	// burstLimit is how many ends of a burst are written down one by one.
	burstLimit = 3
	// settledAfter is how long an instance that crash-looped must be ready before its new attempt is news.
	settledAfter = time.Minute
)

// facts turns a report of an instance into the events that it is news for. The attempts in the record
// make each of them happen once: what the log has already is no news, whoever reports it and how often.
//
// A crash loop is not written down crash by crash. After burstLimit ends that came close upon each other,
// the next ones wait: for one that is final, for the instance to settle, or for the burst to be over; the
// event then counts them.
func facts(i *fleet.Instance, r *pb.InstanceReport, seen seenInstance, now time.Time) []fleet.Payload {
	if i.Final {
		return nil
	}
	attempt, end := r.GetAttempt(), r.GetEnd()
	quiet := i.Burst >= burstLimit && now.Sub(i.LastEnd.At) < fleet.BurstWindow && !r.GetFinal() && !i.Stop
	if quiet && (r.GetState() != stateReady || seen.readySince.IsZero() || now.Sub(seen.readySince) < settledAfter) {
		return nil
	}
	var news []fleet.Payload
	ended := i.EndedAttempt
	over := end != nil || r.GetFinal()
	if attempt > ended+1 && !over {
		news = append(news, &fleet.InstanceEnded{
			Instance: i.ID, Attempt: attempt - 1, Count: attempt - 1 - ended, Cause: overtaken(seen, attempt-1),
		})
		ended = attempt - 1
	}
	if r.GetBooted() != nil && attempt > i.StartedAttempt {
		news = append(news, &fleet.InstanceStarted{Instance: i.ID, Attempt: attempt, Booted: bootedOf(r.GetBooted())})
	}
	if r.GetReadyAt() != nil && attempt > i.ReadyAttempt {
		news = append(news, &fleet.InstanceReady{Instance: i.ID, Attempt: attempt})
	}
	switch {
	case attempt > ended && over:
		news = append(news, &fleet.InstanceEnded{
			Instance: i.ID, Attempt: attempt, Count: attempt - ended, Cause: causeOf(end), Planned: planned(i, end), Final: r.GetFinal(),
		})
	case r.GetFinal():
		news = append(news, &fleet.InstanceEnded{
			Instance: i.ID, Attempt: ended, Cause: causeOf(end), Planned: planned(i, end), Final: true,
		})
	}
	return news
}

// overtaken is the cause of an end that no report brought in time.
func overtaken(seen seenInstance, attempt uint32) fleet.Cause {
	if seen.lastEndAttempt == attempt {
		return causeOf(seen.lastEnd)
	}
	return fleet.Cause{Kind: "lost", Detail: fmt.Sprintf("the host reported attempt %d without the end of attempt %d", attempt+1, attempt)}
}

// planned says whether the platform had asked for an end. An agent that stops what it was told to stop and
// has no end to report, because nothing ran, did as it was asked.
func planned(i *fleet.Instance, end *pb.Cause) bool {
	if end == nil {
		return i.Stop
	}
	return end.GetPlanned()
}

// maxDetail bounds the texts of a report that go into the log, in bytes.
const maxDetail = 2048

func causeOf(c *pb.Cause) fleet.Cause {
	if c == nil {
		return fleet.Cause{Kind: "start_failed", Detail: "it ended before it was started"}
	}
	cause := fleet.Cause{
		Kind: cut(c.GetKind()), Code: c.GetCode(), Signal: cut(c.GetSignal()), Stage: cut(c.GetStage()), Detail: cut(c.GetDetail()),
	}
	if c.GetAt() != nil {
		cause.UnixMilli = c.GetAt().AsTime().UnixMilli()
	}
	return cause
}

func bootedOf(b *pb.Booted) fleet.Booted {
	ids := b.GetDiffIds()
	return fleet.Booted{
		ManifestHash: cut(b.GetManifestHash()), ImageManifestDigest: cut(b.GetImageManifestDigest()), DiffIDs: ids[:min(len(ids), 128)],
		RootfsSHA256: cut(b.GetRootfsSha256()), Converter: cut(b.GetConverter()), KernelSHA256: cut(b.GetKernelSha256()),
		KernelVersion: cut(b.GetKernelVersion()), InitramfsSHA256: cut(b.GetInitramfsSha256()), Driver: cut(b.GetDriver()),
		DriverVersion: cut(b.GetDriverVersion()), Accelerator: cut(b.GetAccelerator()),
	}
}

func cut(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return s[:maxDetail] + " …"
}

// describe says in words how an attempt ended.
func describe(c fleet.Cause) string {
	var text string
	switch c.Kind {
	case "exited":
		text = fmt.Sprintf("exited with code %d", c.Code)
	case "signalled":
		text = "killed by " + c.Signal
	case "guest_oom":
		text = "out of memory inside its VM (raise resources.memory)"
	case "vmm_oom":
		text = "the VM itself ran out of memory on its host"
	case "kernel_panic":
		text = "the guest's kernel panicked"
	case "start_failed":
		text = "could not be started"
		if c.Stage != "" {
			text += " (" + c.Stage + ")"
		}
	case "lost":
		text = "lost without a report of its exit"
	default:
		text = c.Kind
	}
	if c.Detail != "" {
		text += ": " + c.Detail
	}
	return text
}
