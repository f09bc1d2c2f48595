package agent

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// eventually waits until check, called with the server's state held, is satisfied.
func (l *lab) eventually(what string, check func() bool) {
	l.t.Helper()
	deadline := time.After(patience)
	for {
		l.server.mu.Lock()
		ok, changed := check(), l.server.changed
		l.server.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			l.server.mu.Lock()
			defer l.server.mu.Unlock()
			l.t.Fatalf("in vain waited for: %s\nlast report: %v", what, l.server.last)
		}
	}
}

// await waits for a report of an instance that is as wanted, and returns it.
func (l *lab) await(instance, what string, wanted func(*pinnacev1.InstanceReport) bool) *pinnacev1.InstanceReport {
	l.t.Helper()
	var found *pinnacev1.InstanceReport
	l.eventually(instance+" "+what, func() bool {
		for _, r := range l.server.reports[instance] {
			if wanted(r) {
				found = r
			}
		}
		return found != nil
	})
	return proto.CloneOf(found)
}

func (l *lab) awaitState(instance, state string) *pinnacev1.InstanceReport {
	l.t.Helper()
	var found *pinnacev1.InstanceReport
	l.eventually(instance+" is "+state, func() bool {
		all := l.server.reports[instance]
		if len(all) == 0 || all[len(all)-1].State != state {
			return false
		}
		found = all[len(all)-1]
		return true
	})
	return proto.CloneOf(found)
}

// awaitEnd waits until an instance has ended for good.
func (l *lab) awaitEnd(instance string) *pinnacev1.InstanceReport {
	l.t.Helper()
	return l.await(instance, "has ended", func(r *pinnacev1.InstanceReport) bool { return r.Final })
}

// awaitAttemptEnd waits for the end of one attempt.
func (l *lab) awaitAttemptEnd(instance string, attempt uint32) *pinnacev1.Cause {
	l.t.Helper()
	return l.await(instance, fmt.Sprintf("has ended attempt %d", attempt), func(r *pinnacev1.InstanceReport) bool {
		return r.Attempt == attempt && r.End != nil
	}).End
}
