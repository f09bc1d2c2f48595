package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// routeState says what connections an instance gets.
type routeState string

const (
	routeNone     routeState = "none"     // none; its ports are bound all the same, so that nobody takes them
	routeActive   routeState = "active"   // new ones
	routeDraining routeState = "draining" // those that it has
)

// member is an attempt that has a place in an environment's network.
type member struct {
	instance, environment, app string
	ordinal                    uint32
	netns                      string
	address, address6          netip.Addr
	egress                     network.Egress
	ports                      map[string]manifest.Port
	state                      routeState
	parked                     bool   // new connections go to others for now
	joined                     uint64 // orders the members by when they joined
	// peer is the host that it is on, as its certificate says, when it is another one, and peerAddress is where the proxy there waits. Its address
	// is the one that stands for it here.
	peer        string
	peerAddress netip.AddrPort
}

// routes keeps the proxy, the virtual addresses and the networks of environments in step with what runs.
type routes struct {
	agent   *Agent
	changed chan struct{} // has room for one: something changed that the next sync should act on

	applying sync.Mutex // held while a configuration is on its way, so that an older one cannot overtake

	networks sync.Mutex     // held while a network is made or removed; guards users
	users    map[string]int // of the network of an environment: attempts that are in it or about to be

	mu      sync.Mutex // guards what follows
	members map[string]*member
	joins   uint64
	fleet   fleet
	told    bool // the server has said what environments there are
	status  *proxy.Status
	held    bool // not everything that has connections is a member yet: the proxy is told nothing
}

func newRoutes(a *Agent) *routes {
	return &routes{agent: a, changed: make(chan struct{}, 1), members: map[string]*member{}, users: map[string]int{}}
}

// run keeps everything up to date until ctx is done: when names change, and from time to time, because a
// proxy that was started anew has no configuration.
func (r *routes) run(ctx context.Context) {
	for {
		if err := r.sync(ctx).all(); err != nil && ctx.Err() == nil {
			r.agent.Log.Warn("bring the routing up to date", "err", err)
		}
		r.removeUnused(ctx)
		timer := time.NewTimer(r.agent.timing.resync)
		select {
		case <-ctx.Done():
		case <-r.changed:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (r *routes) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// setFleet takes over what the server says of names, virtual addresses and other hosts. The next sync acts on it.
func (r *routes) setFleet(f fleet) {
	r.mu.Lock()
	f = f.after(r.fleet)
	same := proto.Equal(r.fleet.message(), f.message())
	r.fleet, r.told = f, true
	r.mu.Unlock()
	r.wake()
	if same {
		return
	}
	if err := r.agent.keepFleet(f); err != nil {
		r.agent.Log.Warn("an agent that takes over would not know the names of environments", "err", err)
	}
}

// enter makes the network of an environment, which then stays until as many have exited as have entered.
func (r *routes) enter(ctx context.Context, env string) error {
	r.networks.Lock()
	defer r.networks.Unlock()
	if _, err := r.agent.Network.EnsureEnvironment(ctx, env); err != nil {
		return err
	}
	r.users[env]++
	return nil
}

func (r *routes) exit(env string) {
	r.networks.Lock()
	defer r.networks.Unlock()
	if r.users[env]--; r.users[env] <= 0 {
		delete(r.users, env)
	}
	r.wake()
}

// removeUnused removes the networks in which nothing runs or is about to.
func (r *routes) removeUnused(ctx context.Context) {
	r.networks.Lock()
	defer r.networks.Unlock()
	for _, env := range r.agent.Network.Environments() {
		if r.users[env] > 0 || r.assigned(env) {
			continue
		}
		if err := r.agent.Network.RemoveEnvironment(ctx, env); err != nil && ctx.Err() == nil {
			r.agent.Log.Warn("remove the network of an environment", "environment", env, "err", err)
		}
	}
}

// assigned tells whether the environment has, or may have, instances here. An agent that has just started does
// not know yet, and will need the networks that an earlier run has made.
func (r *routes) assigned(env string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.told || slices.ContainsFunc(r.fleet.environments, func(e *pinnacev1.AssignedEnvironment) bool { return e.Name == env })
}

// join makes an attempt known, without traffic. It refuses one that wants a public port of another app: the two
// would get each other's connections.
func (r *routes) join(t *attempt) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joins++
	m := &member{
		instance: t.id, environment: t.assignment.Environment, app: t.assignment.App, ordinal: t.assignment.Ordinal,
		netns: t.attachment.Netns, address: t.attachment.IPv4.Addr(), address6: t.attachment.IPv6.Addr(),
		egress: egress(t.workload.manifest), ports: t.workload.manifest.Ports, state: routeNone,
		parked: t.assigned().GetParked(), joined: r.joins,
	}
	if t.adopted && t.routed != "" {
		m.state = t.routed // connections go through it
	}
	for _, mine := range r.public(m) {
		for _, other := range r.members {
			if other.environment == m.environment && other.app == m.app {
				continue
			}
			if slices.ContainsFunc(r.public(other), mine.collides) {
				return fmt.Errorf("public port %s is taken by app %s of environment %s", mine, other.app, other.environment)
			}
		}
	}
	r.members[t.id] = m
	return nil
}

// leave forgets an instance; its connections end.
func (r *routes) leave(ctx context.Context, instance string) error {
	r.mu.Lock()
	delete(r.members, instance)
	r.mu.Unlock()
	return r.sync(ctx).all()
}

// set changes what connections an instance gets, and returns when the proxy acts on it.
func (r *routes) set(ctx context.Context, instance string, state routeState) error {
	r.mu.Lock()
	m := r.members[instance]
	same := m == nil || m.state == state
	if !same {
		m.state = state
	}
	r.mu.Unlock()
	if same {
		return nil
	}
	return r.sync(ctx).of(m.environment)
}

// park says whether an instance that could be given new connections is passed over, and returns when the proxy acts on
// it. The connections that it has stay.
func (r *routes) park(ctx context.Context, instance string, parked bool) error {
	r.mu.Lock()
	m := r.members[instance]
	same := m == nil || m.parked == parked
	if !same {
		m.parked = parked
	}
	r.mu.Unlock()
	if same {
		return nil
	}
	return r.sync(ctx).of(m.environment)
}

// gets is what connections a member gets.
func (m *member) gets() routeState {
	if m.parked && m.state == routeActive {
		return routeDraining
	}
	return m.state
}

func (r *routes) state(instance string) routeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.members[instance]; m != nil {
		return m.state
	}
	return routeNone
}

// openConnections counts the live connections to an instance.
func (r *routes) openConnections(ctx context.Context, instance string) (int, error) {
	ctx, cancel := r.exchange(ctx)
	defer cancel()
	status, err := r.agent.Proxy.Status(ctx)
	if err != nil {
		return 0, err
	}
	return status.OpenTo(instance), nil
}

// hold keeps the proxy from being told anything until release: a configuration without a backend that has connections
// would end them.
func (r *routes) hold() { r.setHeld(true) }

func (r *routes) release() { r.setHeld(false) }

func (r *routes) setHeld(held bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = held
}

// exchange is the context of one exchange with the proxy. It does not end with ctx, because an exchange that is
// given up half way costs the connection to the proxy, which all instances share.
func (r *routes) exchange(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), r.agent.timing.routing)
}

// applied is what became of a sync.
type applied struct {
	proxy        error
	environments map[string]error
}

// of says what went wrong for one environment.
func (a applied) of(env string) error {
	return inOneLine([]error{a.environments[env], a.proxy})
}

// all says everything that went wrong.
func (a applied) all() error {
	errs := []error{a.proxy}
	for _, env := range slices.Sorted(maps.Keys(a.environments)) {
		errs = append(errs, a.environments[env])
	}
	return inOneLine(errs)
}

// sync makes the proxy and the virtual addresses what they should be.
func (r *routes) sync(ctx context.Context) applied {
	r.applying.Lock()
	defer r.applying.Unlock()
	ctx, cancel := r.exchange(ctx)
	defer cancel()
	result := applied{environments: map[string]error{}}
	r.mu.Lock()
	held := r.held
	cfg, virtual := r.config()
	r.mu.Unlock()
	if held {
		return result
	}

	for env, addresses := range virtual {
		if err := r.agent.Network.SetVirtualAddresses(ctx, env, addresses); err != nil {
			result.environments[env] = fmt.Errorf("virtual addresses of %s: %w", env, err)
		}
	}
	status, err := r.agent.Proxy.Apply(ctx, cfg)
	if err != nil {
		result.proxy = err
		return result
	}
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
	return result
}

// bindError says why a port of the instance cannot be listened on, or nil.
func (r *routes) bindError(instance string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[instance]
	if m == nil || r.status == nil {
		return nil
	}
	var errs []error
	for _, l := range r.listeners(m) {
		if status, ok := r.status.Listener(l.ID); ok && status.Error != "" {
			errs = append(errs, errors.New(status.Error))
		}
	}
	return inOneLine(errs)
}
