package server

import (
	"context"
	"slices"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// watchFrom reads the transitions behind a position, n at most.
func (p *plane) watchFrom(id, after string, n int) (texts []string, last *pb.WatchDeploymentResponse) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	stream, err := p.client.WatchDeployment(ctx, connect.NewRequest(&pb.WatchDeploymentRequest{Deployment: id, After: after}))
	if err != nil {
		p.t.Fatal(err)
	}
	defer stream.Close()
	for len(texts) < n && stream.Receive() {
		last = stream.Msg()
		texts = append(texts, last.GetText())
	}
	if err := stream.Err(); err != nil {
		p.t.Fatal(err)
	}
	return texts, last
}

// TestWatchResumes goes on behind every transition of a deployment, with the server that told it and with one that was
// started since.
func TestWatchResumes(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	d := p.deploy("dev", p.release(text("api", 80, ""), "v1"))
	_, _, all := p.watch(d.GetId())
	if len(all) < 4 {
		t.Fatalf("%d transitions: %v", len(all), all)
	}
	var told []string
	for _, m := range all {
		told = append(told, m.GetText())
	}
	for n, m := range all[:len(all)-1] {
		got, last := p.watchFrom(d.GetId(), m.GetPosition(), 1000)
		if !slices.Equal(got, told[n+1:]) || last.GetDeployment().GetState() != "succeeded" {
			t.Errorf("behind %q: got %q, want %q", m.GetText(), got, told[n+1:])
		}
	}
	// Behind the last one there is only how it ended.
	end, last := p.watchFrom(d.GetId(), all[len(all)-1].GetPosition(), 1000)
	if !slices.Equal(end, []string{""}) || last.GetDeployment().GetState() != "succeeded" {
		t.Errorf("behind the last: got %q, %v", end, last)
	}

	// A server that reads the log anew tells what the log says, whatever reports came between.
	p.kill()
	p.boot()
	fresh, _ := p.watchFrom(d.GetId(), "", 1000)
	for _, m := range all {
		at := slices.Index(fresh, m.GetText())
		if at < 0 || at == len(fresh)-1 {
			continue // only a report told it, or it is the last
		}
		if got, _ := p.watchFrom(d.GetId(), m.GetPosition(), 1000); !slices.Equal(got, fresh[at+1:]) {
			t.Errorf("after a restart, behind %q: got %q, want %q", m.GetText(), got, fresh[at+1:])
		}
	}
	for _, bad := range []string{"1", "1.2.3", "-1.0.0.x", "1.0.0.x y", "99999999999999999999.0.0.x"} {
		stream, err := p.client.WatchDeployment(t.Context(), connect.NewRequest(&pb.WatchDeploymentRequest{Deployment: d.GetId(), After: bad}))
		if err == nil {
			stream.Receive()
			err = stream.Err()
			_ = stream.Close()
		}
		wantCode(t, err, connect.CodeInvalidArgument, "is no position")
	}
}

func TestPositions(t *testing.T) {
	const a, b = "A", "B"
	start := position{}
	event1 := start.next(7, a)
	report1 := event1.next(0, a)
	report2 := report1.next(0, a)
	event2 := report2.next(7, a) // a second line of the same event
	event3 := event2.next(9, a)
	line := []position{event1, report1, report2, event2, event3}
	for i, p := range line {
		if got, ok := parsePosition(p.String()); !ok || got != p {
			t.Errorf("%v reads as %v", p, got)
		}
		for j, q := range line {
			if p.after(q) != (i > j) {
				t.Errorf("%v after %v: %v", p, q, p.after(q))
			}
		}
	}
	// Another server numbers lines of events alike, and what it heard itself is new.
	if other := start.next(7, b).next(7, b); other.after(event2) || event2.after(other) {
		t.Errorf("%v and %v differ", other, event2)
	}
	if heard := event1.next(0, b); !heard.after(report2) || heard.after(event2) {
		t.Errorf("%v: want it behind %v and before %v", heard, report2, event2)
	}
}

func TestLogsResume(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	id := p.instances("dev", false)[0].GetId()
	read := func(req *pb.StreamLogsRequest) (seqs []uint64, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req.Environment, req.Target = "dev", "api"
		stream, err := p.client.StreamLogs(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		for stream.Receive() {
			seqs = append(seqs, stream.Msg().GetSeq())
		}
		return seqs, stream.Err()
	}
	at := func(attempt uint32, seq uint64) []*pb.LogPosition {
		return []*pb.LogPosition{{Instance: id, Attempt: attempt, Seq: seq}, {Instance: "another", Attempt: 9, Seq: 9}}
	}
	for _, test := range []struct {
		after []*pb.LogPosition
		want  []uint64
	}{
		{nil, []uint64{0, 1, 2}},
		{at(1, 0), []uint64{1, 2}},
		{at(1, 1), []uint64{2}},
		{at(1, 2), nil},
		{at(0, 7), []uint64{0, 1, 2}},
		{at(2, 0), nil},
	} {
		if got, err := read(&pb.StreamLogsRequest{After: test.after}); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("after %v: got %v, %v, want %v", test.after, got, err, test.want)
		}
	}
	_, err := read(&pb.StreamLogsRequest{After: make([]*pb.LogPosition, maxLogInstances+1)})
	wantCode(t, err, connect.CodeInvalidArgument, "positions")
}
