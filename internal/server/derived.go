package server

import (
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// copyVersion is that of what Encode writes beside the fleet's state.
const copyVersion = 1

var _ eventlog.Fold = (*ledger)(nil)

// Version implements eventlog.Fold.
func (l *ledger) Version() uint32 { return fleet.StateVersion<<8 | copyVersion }

// Freeze implements eventlog.Fold.
func (l *ledger) Freeze() (uint64, eventlog.Frozen) {
	// Between the fold of a transaction and its telling, the journals lack what the state has.
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.RLock()
	defer l.mu.RUnlock()
	f := &frozen{state: l.state.Clone(), journals: l.journals.clone()}
	return f.state.Seq(), f
}

// Restore implements eventlog.Fold.
func (l *ledger) Restore(data []byte) error {
	var c savedCopy
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	state, err := fleet.DecodeState(c.State)
	if err != nil {
		return err
	}
	js := make([]savedJournal, 0, len(c.Journals))
	for _, j := range c.Journals {
		j.lines = make([]*pb.WatchDeploymentResponse, len(j.Lines))
		for i, b := range j.Lines {
			j.lines[i] = &pb.WatchDeploymentResponse{}
			if err := proto.Unmarshal(b, j.lines[i]); err != nil {
				return fmt.Errorf("journal of %s: %w", j.Deployment, err)
			}
		}
		js = append(js, j)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.ahead = state, state
	l.journals.restore(js)
	return nil
}

// frozen is the state of one moment with the journals that belong to it.
type frozen struct {
	state    *fleet.State
	journals []savedJournal
}

type savedCopy struct {
	State    json.RawMessage
	Journals []savedJournal
}

type savedJournal struct {
	Deployment string
	Lines      [][]byte
	lines      []*pb.WatchDeploymentResponse
}

// Hash implements eventlog.Frozen. What the journals say is no state.
func (f *frozen) Hash() eventlog.Hash { return f.state.Hash() }

// Encode implements eventlog.Frozen.
func (f *frozen) Encode() ([]byte, error) {
	state, err := f.state.Encode()
	if err != nil {
		return nil, err
	}
	for i := range f.journals {
		j := &f.journals[i]
		j.Lines = make([][]byte, len(j.lines))
		for n, line := range j.lines {
			if j.Lines[n], err = proto.Marshal(line); err != nil {
				return nil, err
			}
		}
	}
	return json.Marshal(savedCopy{State: state, Journals: f.journals})
}

// clone gives all journals, oldest first. Lines never change once they are there.
func (j *journals) clone() []savedJournal {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]savedJournal, 0, len(j.order))
	for _, d := range j.order {
		out = append(out, savedJournal{Deployment: d, lines: slices.Clone(j.lines[d])})
	}
	return out
}

func (j *journals) restore(saved []savedJournal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range saved {
		j.order = append(j.order, s.Deployment)
		j.lines[s.Deployment] = s.lines
	}
}
