package server

import (
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// Bounds of how long the agents are served from one view while changes go on: viewEach for each of them, since each
// looks at a new one.
const (
	viewEach = time.Millisecond
	minView  = 20 * time.Millisecond
	maxView  = 2 * time.Second
)

// views have many agents look at the same state. A change concerns few hosts, and all have to look whether they are
// among them: if each looked at each change, the work of a large fleet would grow with the square of its size.
type views struct {
	mu     sync.Mutex
	last   *view // guarded by mu
	agents int   // guarded by mu; how many watch
}

// view is the state at one moment, and what has been worked out of it.
type view struct {
	at      time.Time
	changes uint64 // that had been when it was made
	state   *fleet.State

	mu           sync.Mutex
	environments map[string]*pb.AssignedEnvironment // guarded by mu
}

// current is the last view, or a new one when there were changes and it is old enough.
func (v *views) current(l *ledger, changed *signal) *view {
	v.mu.Lock()
	defer v.mu.Unlock()
	changes := changed.count()
	if v.last != nil && (v.last.changes == changes || time.Since(v.last.at) < v.lasts()) {
		return v.last
	}
	next := &view{at: time.Now(), changes: changes, environments: map[string]*pb.AssignedEnvironment{}}
	l.read(func(st *fleet.State) { next.state = st.Clone() })
	next.state.Freeze()
	v.last = next
	return next
}

// left is for how much longer a view is new. Until then there is no newer one.
func (v *views) left(of *view) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lasts() - time.Since(of.at)
}

// lasts is for how long a view serves. The caller holds mu.
func (v *views) lasts() time.Duration {
	return min(max(time.Duration(v.agents)*viewEach, minView), maxView)
}

// watched counts those who watch.
func (v *views) watched(more int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.agents += more
}

// read calls fn with the state.
func (v *view) read(fn func(*fleet.State)) { fn(v.state) }

// has tells whether there was an instance.
func (v *view) has(instance string) bool { return v.state.Instance(instance) != nil }

// environment is what assignedEnvironment says of one, in a copy that is the caller's.
func (v *view) environment(name string) *pb.AssignedEnvironment {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.environments[name]
	if e == nil {
		e = assignedEnvironment(v.state, name)
		v.environments[name] = e
	}
	return proto.CloneOf(e)
}
