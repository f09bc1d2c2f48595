package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

const (
	// recorders is of how many hosts the reports are written down at a time: they wait for the disk together.
	recorders = 64
	// recordedTogether bounds the instances of a report whose news are one request to the log.
	recordedTogether = 32
)

// record appends what reports bring that the log doesn't have. Those of one host are taken in their order. later tells that
// the log could not take something now.
func (s *Server) record(ctx context.Context, reports []*pb.ReportRequest) (later bool, err error) {
	hosts := map[string][]*pb.ReportRequest{}
	for _, r := range reports {
		hosts[r.GetHost()] = append(hosts[r.GetHost()], r)
	}
	var wg sync.WaitGroup
	free := make(chan struct{}, recorders)
	errs := make(chan error, len(hosts))
	for _, of := range hosts {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			for _, r := range of {
				reportDrained.Hit()
				if err := s.recordReport(ctx, r); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		if s.tryLater(ctx, err) {
			later = true
			continue
		}
		all = append(all, err)
	}
	return later, errors.Join(all...)
}

func (s *Server) recordReport(ctx context.Context, r *pb.ReportRequest) error {
	var gone []fleet.Payload
	s.ledger.read(func(st *fleet.State) { gone = removals(st, r) })
	for _, p := range gone {
		if err := s.ledger.append(ctx, "host/"+r.GetHost(), "", p); err != nil && !isRejected(err) {
			return fmt.Errorf("record what host %s has removed: %w", r.GetHost(), err)
		}
	}
	for some := range slices.Chunk(r.GetInstances(), recordedTogether) {
		if err := s.recordInstances(ctx, r.GetHost(), some); err != nil {
			return err
		}
	}
	return nil
}

// recordInstances appends the news of instances as one request. When the fold refuses that, each is a request of its own:
// one that it refuses must not hold up the others.
func (s *Server) recordInstances(ctx context.Context, host string, reports []*pb.InstanceReport) error {
	var news []fleet.Payload
	var told []*pb.InstanceReport
	s.ledger.read(func(st *fleet.State) {
		seen := map[string]bool{}
		for _, report := range reports {
			i := st.Instance(report.GetInstance())
			if i == nil || i.Host != host || seen[i.ID] {
				continue // not placed there: the agent learns so from its assignments
			}
			seen[i.ID] = true
			if its := facts(i, report, s.observed.instance(i.ID), s.now()); len(its) > 0 {
				news, told = append(news, its...), append(told, report)
			}
		}
	})
	if len(news) == 0 {
		return nil
	}
	err := s.ledger.append(ctx, "host/"+host, "", news...)
	switch {
	case isRejected(err) && len(told) == 1:
		s.log.WarnContext(ctx, "report refused by the state", "instance", told[0].GetInstance(), "host", host, "error", err)
		return nil
	case isRejected(err):
		for _, report := range told {
			if err := s.recordInstances(ctx, host, []*pb.InstanceReport{report}); err != nil {
				return err
			}
		}
		return nil
	case err != nil:
		return fmt.Errorf("record report of host %s: %w", host, err)
	}
	return nil
}
