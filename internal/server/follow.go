package server

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/feed"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// follower is a stream of assignments to an agent that follows changes.
type follower struct {
	host string
	wake chan struct{} // has room for one
	// stale is true when the host's own set may be another one than was sent.
	stale atomic.Bool
	// heard is owned by the stream.
	heard map[feed.ID]heard
}

// join adds a follower.
func (f *feeds) join(host string) *follower {
	w := &follower{host: host, wake: make(chan struct{}, 1), heard: map[feed.ID]heard{}}
	w.stale.Store(true)
	defer f.anew(f.followed())
	f.following.Lock()
	defer f.following.Unlock()
	if f.followers[host] == nil {
		f.followers[host] = map[*follower]struct{}{}
	}
	f.followers[host][w] = struct{}{}
	f.count++
	f.dirt.hurry(paceFor(f.count))
	return w
}

// anew has everything worked out for the first one who follows: before, nothing was.
func (f *feeds) anew(followed bool) {
	if followed {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.published = false
}

func (f *feeds) leave(w *follower) {
	f.following.Lock()
	defer f.following.Unlock()
	delete(f.followers[w.host], w)
	if len(f.followers[w.host]) == 0 {
		delete(f.followers, w.host)
	}
	f.count--
	f.dirt.hurry(paceFor(f.count))
}

// paceFor is the time from one look at what has changed to the next: each is heard of by many of those who follow.
func paceFor(followers int) time.Duration {
	if followers == 0 {
		return 0
	}
	return min(max(time.Duration(followers)*viewEach, minView), maxView)
}

func (f *feeds) followed() bool {
	f.following.Lock()
	defer f.following.Unlock()
	return f.count > 0
}

// wake has those who follow for hosts look at their own sets.
func (f *feeds) wake(hosts []string) {
	f.following.Lock()
	defer f.following.Unlock()
	for _, host := range hosts {
		for w := range f.followers[host] {
			w.stale.Store(true)
			w.poke()
		}
	}
}

// wakeAll wakes all; stale says that their own sets may be others.
func (f *feeds) wakeAll(stale bool) {
	f.following.Lock()
	defer f.following.Unlock()
	for _, all := range f.followers {
		for w := range all {
			if stale {
				w.stale.Store(true)
			}
			w.poke()
		}
	}
}

func (w *follower) poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake already, or about to be
	}
}

// ownFacts are what decides which feeds a host hears.
type ownFacts struct {
	leads   bool // connections to other hosts: it has said where it is reached itself
	ingress bool // it binds public ports
}

// ownSet is what a host is to run, and the environments of that.
func (f *feeds) ownSet(host string) (set *pb.WatchAssignmentsResponse, here map[string]bool, own ownFacts) {
	f.mu.Lock()
	f.ready()
	labelled := f.labelled
	f.mu.Unlock()
	f.server.ledger.read(func(st *fleet.State) {
		set, here = f.server.ownAssignments(st, host)
		h := st.Host(host)
		own.ingress = h != nil && (isIngress(h) || !labelled)
	})
	own.leads = f.server.observed.peerAddress(host) != ""
	set.FleetApart, set.NoIngress = true, !own.ingress
	return set, here, own
}

// canFollow reports whether an agent follows changes, and speaks the encoding that they are kept in.
func canFollow(req *connect.Request[pb.WatchAssignmentsRequest]) bool {
	return req.Msg.GetFollows() && !strings.Contains(req.Header().Get("Content-Type"), "json")
}

// follow is WatchAssignments for an agent that follows changes: its own set comes whole whenever it is another one, and
// what it has to know of the rest of the fleet as changes.
func (a *agents) follow(ctx context.Context, host string, stream *connect.ServerStream[pb.WatchAssignmentsResponse]) error {
	w := a.feeds.join(host)
	defer a.feeds.leave(w)
	var (
		sent     [sha256.Size]byte // of the set; the set itself would be kept for every host
		revision uint64            // of the set; 0 before there is one
		here     map[string]bool
		own      ownFacts
	)
	knows := map[string]bool{} // instances of the set that was sent
	told := newHanded()
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	quiet, lacking := false, false
	for {
		wanted := a.asked.next()
		last := &pb.WatchAssignmentsResponse{Revision: revision}
		say := quiet
		if w.stale.Swap(false) {
			var set *pb.WatchAssignmentsResponse
			set, here, own = a.feeds.ownSet(host)
			if sum := digestOfSet(set); revision == 0 || sum != sent {
				sent, revision, last, say = sum, set.GetRevision(), set, true
				lacking = !a.deliver(ctx, last)
				clear(knows)
				for _, asg := range set.GetAssignments() {
					knows[asg.GetInstance()] = true
				}
			}
		}
		// An agent knows of an instance by a set that has it. What somebody wants of one waits for that.
		early := func(instance string) bool { return !knows[instance] && a.runsOn(instance, host) }
		last.LogRequests, last.ExecTasks, last.HostTasks = a.wantedOf(host, told, early)
		say = say || len(last.GetLogRequests())+len(last.GetExecTasks())+len(last.GetHostTasks()) > 0
		pieces := a.feeds.news(w, here, own)
		if last.GetComplete() {
			assignBefore.Hit()
		}
		if err := sendPieces(stream, pieces, last, say); err != nil {
			return err
		}
		if last.GetComplete() {
			assignAfter.Hit()
		}
		quiet = false
		select {
		case <-ctx.Done():
			return a.onWire(ctx, ctx.Err())
		case <-w.wake:
		case <-wanted:
		case <-alive.C:
			quiet = true
			if lacking { // what could not be opened is tried again
				revision = 0
				w.stale.Store(true)
			}
		}
	}
}

// digestOfSet is equal for equal sets, whatever their revisions: those are positions in the log and grow with every event.
func digestOfSet(set *pb.WatchAssignmentsResponse) [sha256.Size]byte {
	revision := set.GetRevision()
	set.Revision = 0
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	set.Revision = revision
	if err != nil {
		b = fmt.Append(nil, revision) // it cannot be sent either, which says why
	}
	return sha256.Sum256(b)
}

// sendPieces sends pieces in messages of a bounded size, of which the last one is last. Without pieces that is sent only
// when there is something to say.
func sendPieces(stream *connect.ServerStream[pb.WatchAssignmentsResponse], pieces [][]byte, last *pb.WatchAssignmentsResponse, say bool) error {
	if len(pieces) == 0 && !say {
		return nil
	}
	for len(pieces) > 0 {
		n, size := 0, 0
		for n < len(pieces) && (n == 0 || size+len(pieces[n]) <= feed.MaxPiece) {
			size += len(pieces[n])
			n++
		}
		if n == len(pieces) {
			break
		}
		part := &pb.WatchAssignmentsResponse{Revision: last.GetRevision(), More: true}
		feed.Attach(part, pieces[:n]...)
		if err := stream.Send(part); err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	feed.Attach(last, pieces...)
	return stream.Send(last)
}

// runsOn reports whether an instance is one that a host is to run.
func (a *agents) runsOn(instance, host string) (runs bool) {
	a.ledger.read(func(st *fleet.State) {
		i := st.Instance(instance)
		runs = i != nil && i.Host == host && !i.Final
	})
	return runs
}
