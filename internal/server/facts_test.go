package server

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func TestFacts(t *testing.T) {
	report := func(attempt uint32, state string, change ...func(*pb.InstanceReport)) *pb.InstanceReport {
		r := &pb.InstanceReport{Instance: "i", Attempt: attempt, State: state}
		for _, c := range change {
			c(r)
		}
		return r
	}
	booted := func(r *pb.InstanceReport) { r.Booted = &pb.Booted{} }
	ready := func(r *pb.InstanceReport) { r.ReadyAt = timestamppb.New(noon) }
	end := func(r *pb.InstanceReport) { r.End = &pb.Cause{Kind: "exited", Code: 1} }
	final := func(r *pb.InstanceReport) { r.Final = true }
	burst := func(i *fleet.Instance) {
		i.StartedAttempt, i.EndedAttempt, i.Burst, i.LastEnd = 3, 3, burstLimit, &fleet.End{Attempt: 3, At: noon.Add(-time.Minute)}
	}
	tests := []struct {
		name     string
		instance func(*fleet.Instance)
		report   *pb.InstanceReport
		seen     seenInstance
		want     []string
	}{
		{"placed", nil, report(0, statePlaced), seenInstance{}, nil},
		{"pulling", nil, report(1, "pulling"), seenInstance{}, nil},
		{"started", nil, report(1, "started", booted), seenInstance{}, []string{"started 1"}},
		{"started, and known", func(i *fleet.Instance) { i.StartedAttempt = 1 }, report(1, "started", booted), seenInstance{}, nil},
		{"all at once", nil, report(1, stateEnded, booted, ready, end), seenInstance{}, []string{"started 1", "ready 1", "ended 1 x1 exited"}},
		{"ended, and known", func(i *fleet.Instance) { i.StartedAttempt, i.EndedAttempt = 1, 1 }, report(1, "backoff", booted, end), seenInstance{}, nil},
		{"an end was missed", nil, report(3, "pulling"), seenInstance{}, []string{"ended 2 x2 lost"}},
		{
			"an end was overtaken", func(i *fleet.Instance) { i.EndedAttempt = 1 }, report(3, "pulling"),
			seenInstance{lastEnd: &pb.Cause{Kind: "guest_oom"}, lastEndAttempt: 2},
			[]string{"ended 2 x1 guest_oom"},
		},
		{"stopped before it was started", func(i *fleet.Instance) { i.Stop = true }, report(0, stateEnded, final), seenInstance{}, []string{"ended 0 x0 start_failed planned final"}},
		{
			"stopped between two attempts", func(i *fleet.Instance) { i.EndedAttempt, i.Stop = 2, true }, report(2, stateEnded, end, final),
			seenInstance{},
			[]string{"ended 2 x0 exited final"},
		},
		{"final, and known", func(i *fleet.Instance) { i.Final = true }, report(2, stateEnded, end, final), seenInstance{}, nil},
		{"a crash loop is quiet", burst, report(9, stateEnded, booted, end), seenInstance{}, nil},
		{"so is its next ready", burst, report(9, stateReady, booted, ready), seenInstance{readySince: noon.Add(-time.Second)}, nil},
		{
			"until it settles", burst, report(9, stateReady, booted, ready),
			seenInstance{readySince: noon.Add(-settledAfter)},
			[]string{"ended 8 x5 lost", "started 9", "ready 9"},
		},
		{"a final end is no crash among others", burst, report(9, stateEnded, booted, end, final), seenInstance{}, []string{"started 9", "ended 9 x6 exited final"}},
		{
			"a burst passes", func(i *fleet.Instance) { burst(i); i.LastEnd.At = noon.Add(-fleet.BurstWindow) }, report(60, stateEnded, end),
			seenInstance{},
			[]string{"ended 60 x57 exited"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i := &fleet.Instance{ID: "i"}
			if tt.instance != nil {
				tt.instance(i)
			}
			var got []string
			for _, p := range facts(i, tt.report, tt.seen, noon) {
				switch p := p.(type) {
				case *fleet.InstanceStarted:
					got = append(got, fmt.Sprintf("started %d", p.Attempt))
				case *fleet.InstanceReady:
					got = append(got, fmt.Sprintf("ready %d", p.Attempt))
				case *fleet.InstanceEnded:
					line := fmt.Sprintf("ended %d x%d %s", p.Attempt, p.Count, p.Cause.Kind)
					if p.Planned {
						line += " planned"
					}
					if p.Final {
						line += " final"
					}
					got = append(got, line)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %v\nwant %v", got, tt.want)
			}
		})
	}
}

// TestCrashLoopIsCoalesced lets an instance crash many times and counts what the log has of it.
func TestCrashLoopIsCoalesced(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	rel := p.release(text("api", 80, `rollout.on_failure = "pause"`), "crash")
	p.watch(p.deploy("dev", rel).GetId())
	p.eventually("thirty attempts", func() bool {
		i := p.instances("dev", false)[0]
		return i.GetAttempt() >= 30 && i.GetLastEnd().GetCode() == 1
	})
	// The first attempts may start and end one by one, and reports may skip some of them.
	if head := p.ledger.log.Head().Seq; head > 4+4*burstLimit+2 {
		t.Errorf("%d events for a crash loop", head)
	}
}

func TestObservedReadiness(t *testing.T) {
	o := newObserved(time.Minute)
	say := func(at int, state string, attempt uint32) seenInstance {
		o.reported(&pb.ReportRequest{Host: "h", Instances: []*pb.InstanceReport{{Instance: "i", State: state, Attempt: attempt}}}, noon.Add(time.Duration(at)*time.Second))
		return o.instance("i")
	}
	since := func(got seenInstance, want int, fromStart bool) {
		t.Helper()
		if !got.readySince.Equal(noon.Add(time.Duration(want)*time.Second)) || got.fromStart != fromStart {
			t.Errorf("ready since %s, from the start %v; want %d s, %v", got.readySince.Sub(noon), got.fromStart, want, fromStart)
		}
	}
	since(say(1, stateReady, 1), 1, true)
	since(say(2, stateReady, 1), 1, true)
	if got := say(3, "unready", 1); !got.readySince.IsZero() {
		t.Errorf("unready and ready since %s", got.readySince)
	}
	since(say(4, stateReady, 1), 4, false)
	since(say(5, stateReady, 2), 5, false)
	for range 3 * maxQueued {
		o.queue(&pb.ReportRequest{Host: "h"})
	}
	if n := len(o.drain()); n != maxQueued {
		t.Errorf("%d reports wait, want at most %d", n, maxQueued)
	}
}
