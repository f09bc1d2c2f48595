package server

import (
	"maps"
	"sync"
	"time"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// appAt is an app of an environment.
type appAt struct{ environment, app string }

// marks are what may be other than it was when it was worked out last.
type marks struct {
	all              bool
	hosts            bool
	names, instances map[appAt]bool
}

// dirt collects marks, and has them looked at when it is time.
type dirt struct {
	take func() // called a while after something was marked, in a goroutine of its own

	mu     sync.Mutex
	marked marks         // guarded by mu
	pace   time.Duration // guarded by mu; the time from one look to the next
	last   time.Time     // guarded by mu; when it was looked last
	timer  *time.Timer   // guarded by mu; nil while nothing is marked
	closed bool          // guarded by mu
}

// onto adds the marks to others.
func (m marks) onto(others *marks) {
	others.all, others.hosts = others.all || m.all, others.hosts || m.hosts
	maps.Copy(others.names, m.names)
	maps.Copy(others.instances, m.instances)
}

// mark notes what change says, for a look that is at most one pace away. Nothing is waited for in it: who marks may be
// reading the state.
func (d *dirt) mark(change func(*marks)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marked.names == nil {
		d.marked.names, d.marked.instances = map[appAt]bool{}, map[appAt]bool{}
	}
	change(&d.marked)
	if d.timer == nil && !d.closed && d.pace > 0 {
		d.timer = time.AfterFunc(max(0, d.pace-time.Since(d.last)), d.take)
	}
}

// sweep gives what is marked, and begins anew.
func (d *dirt) sweep() marks {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.marked
	d.marked, d.last, d.timer = marks{}, time.Now(), nil
	return m
}

// sweepNames gives the names that are marked. Everything else stays marked.
func (d *dirt) sweepNames() map[appAt]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := d.marked.names
	d.marked.names = map[appAt]bool{}
	if d.marked.instances == nil {
		d.marked.instances = map[appAt]bool{}
	}
	return names
}

// hurry sets the pace; 0 while nobody wants to know.
func (d *dirt) hurry(pace time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pace = pace
}

func (d *dirt) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.timer != nil {
		d.timer.Stop()
	}
}

// touched marks what committed events may have changed. An event that it has no rule for may have changed everything: a
// rule saves work, and may leave nothing out that assignedApp, elsewhere or ownAssignments looks at.
func (f *feeds) touched(entries []entry) {
	if !f.followed() {
		f.dirt.mark(func(m *marks) { m.all = true })
		return
	}
	t := touch{feeds: f, marks: marks{names: map[appAt]bool{}, instances: map[appAt]bool{}}}
	for _, e := range entries {
		t.entry(e)
	}
	f.dirt.mark(t.marks.onto)
	if t.all {
		f.wakeAll(true)
		return
	}
	f.wake(t.hosts)
}

// touch is what entries may have changed.
type touch struct {
	*feeds
	marks
	hosts []string // whose own sets may be others
}

func (t *touch) entry(e entry) {
	switch p := e.payload.(type) {
	case *fleet.TokenCreated, *fleet.TokenRevoked, *fleet.JoinAllowed, *fleet.ReleaseCreated, *fleet.VarsChanged, *fleet.AppPlaced,
		*fleet.QuotaSet, *fleet.ExecRequested, *fleet.HostDrainStarted, *fleet.HostDrainEnded, *fleet.EnvironmentCreated, *fleet.InstanceReady:
		// Nothing of it goes to hosts, or not before another event.
	case *fleet.HostJoined:
		t.marks.hosts = true
		t.hosts = append(t.hosts, p.Host)
	case *fleet.HostAdmitted:
		t.marks.hosts = true
	case *fleet.VolumeBound:
		t.hosts = append(t.hosts, p.Host)
	case *fleet.RunStarted:
		t.hosts = append(t.hosts, p.Host)
	case *fleet.RunStopped:
		t.ledger(func(st *fleet.State) { t.instance(st.Instance(p.Instance)) })
	case *fleet.InstanceStarted:
		if t.instance(e.instance); e.instance == nil {
			t.all = true
		}
	case *fleet.InstanceEnded:
		if e.instance == nil { // it was the last of something that is destroyed, and nobody remembers it
			t.all = true
			return
		}
		t.instance(e.instance)
		t.app(e.instance.Environment, e.instance.App)
	case *fleet.InstancesPlanned:
		for _, start := range p.Start {
			t.hosts = append(t.hosts, start.Host)
		}
		t.ledger(func(st *fleet.State) {
			for _, id := range p.Stop {
				t.instance(st.Instance(id))
			}
		})
		t.deployment(e.deployment)
	case *fleet.DeploymentStarted, *fleet.DeploymentPaused, *fleet.DeploymentResumed, *fleet.DeploymentTurnedBack, *fleet.DeploymentSwitched,
		*fleet.DeploymentFinished:
		if t.deployment(e.deployment); e.deployment != nil {
			t.ledger(func(st *fleet.State) {
				for _, i := range st.Instances(e.deployment.Environment, e.deployment.App) {
					t.instance(i)
				}
			})
		}
	default:
		t.all = true
	}
}

func (t *touch) ledger(look func(*fleet.State)) { t.server.ledger.read(look) }

func (t *touch) app(environment, app string) {
	t.names[appAt{environment, app}], t.instances[appAt{environment, app}] = true, true
}

func (t *touch) deployment(d *fleet.Deployment) {
	if d == nil {
		t.all = true
		return
	}
	t.app(d.Environment, d.App)
}

// instance marks that of the host of an instance. One that is forgotten is nil: it has ended, and its end has an event.
func (t *touch) instance(i *fleet.Instance) {
	if i != nil {
		t.hosts = append(t.hosts, i.Host)
	}
}

// moved marks instances that reports have another state of.
func (f *feeds) moved(st *fleet.State, reports []*pb.InstanceReport) {
	m := marks{instances: map[appAt]bool{}}
	for _, r := range reports {
		if i := st.Instance(r.GetInstance()); i != nil {
			m.instances[appAt{i.Environment, i.App}] = true
		}
	}
	f.dirt.mark(m.onto)
}

// cameOrWent marks what is on hosts that are connected now and were not, or the other way round.
func (f *feeds) cameOrWent(hosts []string) {
	m := marks{instances: map[appAt]bool{}}
	f.server.ledger.read(func(st *fleet.State) {
		for _, host := range hosts {
			for _, i := range st.InstancesOn(host) {
				m.instances[appAt{i.Environment, i.App}] = true
			}
		}
	})
	f.dirt.mark(m.onto)
}

// reached marks that a host has said where others reach it, and wakes it: it may lead connections now.
func (f *feeds) reached(host string) {
	f.dirt.mark(func(m *marks) { m.hosts = true })
	f.wake([]string{host})
}
