package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// Agents and the command line remember the last head of the log that they heard of, and ask for the hash of
// that event when they come back. A log that was restored from an older copy, or has lost events, does not
// know it: the server can't be the one who judges that.

// HeadHeader is the header of a response that says which event of which log was the last one when the call had
// been answered: "LOG SEQ HASH". A caller that changed something has then seen its own event.
const HeadHeader = "Pinnace-Log-Head"

func (s *Server) tellHead() connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			res, err := next(ctx, req)
			if err == nil {
				head := s.ledger.log.Head()
				res.Header().Set(HeadHeader, fmt.Sprintf("%s %d %s", s.ledger.log.ID(), head.Seq, head.Hash))
			}
			return res, err
		}
	}
}

// leads tells whether this server is the one that decides.
func (s *Server) leads() bool {
	select {
	case <-s.ledger.log.Leads():
		return true
	default:
		return false
	}
}

// informed says why this server cannot tell who may do what: it follows another one, and does not hear what was decided
// there. Whoever was put out meanwhile would still be let in here.
func (s *Server) informed() error {
	if s.leads() {
		return nil
	}
	if age := time.Since(s.ledger.log.CaughtUp()); age > s.opts.StaleAfter {
		return refuse(connect.CodeUnavailable, "this server follows another one and has not reached the event log for %s: ask another server", age.Round(time.Second))
	}
	return nil
}

// seenHash is the hash of an event that somebody saw before, or none when the log does not reach it.
func (s *Server) seenHash(ctx context.Context, seq uint64) ([]byte, error) {
	head, err := s.ledger.log.HeadAt(ctx, seq)
	if _, ok := errors.AsType[*eventlog.RegressionError](err); ok {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return head.Hash[:], nil
}

func (s *Server) logHead() *pb.LogHead {
	head := s.ledger.log.Head()
	return &pb.LogHead{Log: s.ledger.log.ID().String(), Seq: head.Seq, Hash: head.Hash[:]}
}
