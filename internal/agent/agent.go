// Package agent makes real on one host what the server decided: it pulls images, runs instances as
// microVMs, watches their health, restarts them, routes connections to those that are ready, keeps their
// logs, and reports.
//
// The agent acts on the Release alone. What an instance runs is in its assignment as digests and canonical
// bytes, which the agent checks again with the code that the server used; there is no tag in it and nothing
// to ask a registry about but blobs by digest. When the server is away, what runs goes on running.
//
// The package decides nothing about placement and knows no driver: cmd gives it one.
package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/proxy"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/volume"
)

// Network is what the agent needs of the host's networks. *network.Manager is one.
type Network interface {
	EnsureEnvironment(ctx context.Context, env string) (*network.Namespace, error)
	RemoveEnvironment(ctx context.Context, env string) error
	Environments() []string
	Attach(ctx context.Context, env, instance string, uid uint32) (*network.Attachment, error)
	SetEgress(ctx context.Context, env, instance string, egress network.Egress) error
	Detach(ctx context.Context, env, instance string) error
	Attachments(env string) ([]network.Attachment, error)
	SetVirtualAddresses(ctx context.Context, env string, addrs []netip.Addr) error
	// Dial connects to an address inside the environment.
	Dial(ctx context.Context, env string, address netip.AddrPort) (net.Conn, error)
}

// Proxy is what the agent needs of the proxy process. *proxy.Client is one.
type Proxy interface {
	Apply(ctx context.Context, c proxy.Config) (*proxy.Status, error)
	Status(ctx context.Context) (*proxy.Status, error)
}

// Options are what an Agent works with. All fields without "may" must be set.
type Options struct {
	// Host are the facts that the server gets to know; Host.Id names the agent everywhere.
	Host *pinnacev1.HostFacts
	// Dir holds what must survive a reboot, attempt numbers and logs, and the scratch disks of the machines that run.
	// RunDir holds what must not: the directories of those machines. The agent owns both.
	Dir, RunDir string
	// VolumesDir holds the volumes of this host, and may be empty for the directory "volumes" in Dir.
	VolumesDir string
	// Server is where assignments come from and reports go to.
	Server pinnacev1connect.AgentServiceClient
	// Driver starts the machines, and Kernel is what they boot.
	Driver vm.Driver
	Kernel *kernel.Kernel
	// Images is the host's store; Source gives the blobs of a repository ("host/name").
	Images *image.Store
	Source func(repository string) image.Source
	// SourceAs is Source for a repository whose registry the server has given a login for; Source when nil.
	SourceAs func(repository string, as Login) image.Source
	// LeaseOwner may be set, to one word, for an agent that shares the store with another agent: each gives up
	// leases of its own only.
	LeaseOwner string
	// ScrubRate is how many bytes a second of the store are read again in the background; 0 for not at all.
	ScrubRate int64
	// Scratch makes the writable disk of an attempt, of size bytes, at path.
	Scratch func(ctx context.Context, path string, size int64) error
	// Network and Proxy are the host's.
	Network Network
	Proxy   Proxy
	// PublicAddress is where public ports are bound, 0.0.0.0 for all of the host's addresses.
	PublicAddress netip.Addr
	// Peering may be nil for a host that leads no connections to others, and takes none of theirs. With it,
	// Host.PeerAddress should say where others reach Peering.Listen.
	Peering *Peering
	// IO bounds what each machine reads from and writes to each of the host's disks; zero fields don't.
	IO cgroup.IORate
	// FirstUID and the numbers above it are the identities that machines run under, one each. 0 means the
	// agent's own identity, for tests without root.
	FirstUID uint32
	// LeaveMachines lets machines live on when Run ends, for the next agent to take over; otherwise Run stops them.
	LeaveMachines bool
	Log           *slog.Logger
}

// Agent runs the instances of one host.
type Agent struct {
	Options

	timing   timing
	logs     *logStore
	keeper   *keeper
	access   *access
	heads    *headMemory
	routes   *routes
	volumes  *volume.Store
	vault    *vault
	noCore   sync.Once     // done when the agent has secrets
	reportc  chan struct{} // has room for one: something changed that the server should know
	running  sync.WaitGroup
	logSlots chan struct{} // holds one for each request for logs that is being answered
	// execSlots holds one for each command that runs beside a workload.
	execSlots chan struct{}
	// taskSlots holds one for each task of the server that is being done.
	taskSlots chan struct{}

	// Owned by the assignment loop, and of this stream: the revision of the newest set, and what has been told of the fleet.
	revision uint64
	follows  following

	mu        sync.Mutex // guards what follows
	instances map[string]*instance
	logins    map[string][]Login // by instance; replaced as a whole
	uids      map[uint32]string  // uid -> instance
	acted     uint64             // the last revision that was acted on

	shelf *shelf // what the server is told of the volumes, and what it wants removed
}

// New makes an Agent. It takes over the machines that an earlier run of the agent has left, however that ended, and ends
// those that are not proven to be its own.
func New(ctx context.Context, opts Options) (*Agent, error) {
	for _, dir := range []string{opts.Dir, opts.instancesDir(), opts.disksDir(), opts.RunDir, opts.machinesDir()} {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the agent's directory: %w", err)
		}
	}
	logs, err := openLogStore(filepath.Join(opts.Dir, "logs"), time.Now)
	if err != nil {
		return nil, err
	}
	keeper, err := openKeeper(opts.Images, opts.LeaseOwner, opts.imagesPath(), time.Now)
	if err != nil {
		return nil, err
	}
	access, err := openAccess(opts.accessPath(), keeper.ranBefore)
	if err != nil {
		return nil, err
	}
	heads, err := openHeadMemory(headPath(opts.Dir))
	if err != nil {
		return nil, err
	}
	volumes, err := volume.Open(opts.volumesDir())
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Options:   opts,
		volumes:   volumes,
		vault:     newVault(opts.RunDir),
		keeper:    keeper,
		access:    access,
		heads:     heads,
		timing:    defaultTiming(),
		logs:      logs,
		reportc:   make(chan struct{}, 1),
		logSlots:  make(chan struct{}, maxLogRequests),
		execSlots: make(chan struct{}, maxExecs),
		taskSlots: make(chan struct{}, maxTasks),
		shelf:     newShelf(),
		instances: map[string]*instance{},
		uids:      map[uint32]string{},
	}
	a.routes = newRoutes(a)
	if err := a.removeExports(); err != nil {
		return nil, fmt.Errorf("remove what exports have left: %w", err)
	}
	if err := a.takeOver(ctx); err != nil {
		return nil, err
	}
	return a, nil
}

func (o *Options) instancesDir() string { return filepath.Join(o.Dir, "instances") }
func (o *Options) disksDir() string     { return filepath.Join(o.Dir, "disks") }
func (o *Options) machinesDir() string  { return filepath.Join(o.RunDir, "vm") }

// cgroupParent is above the cgroups of this agent's machines, and of no other agent's on the same machine.
func (o *Options) cgroupParent() string {
	return fmt.Sprintf("pinnace/%x", sha256.Sum256([]byte(o.RunDir)))[:len("pinnace/")+12]
}

// Run joins the server and acts on its assignments until ctx is done. Then it stops the machines, unless it is to leave
// them, tells the server, and returns when everything that it started has ended.
func (a *Agent) Run(ctx context.Context) error {
	// What serves the instances outlives ctx, because they are stopped in order after it is done.
	after := context.WithoutCancel(ctx)
	loopCtx, endLoops := context.WithCancel(after)
	defer endLoops()
	var loops sync.WaitGroup
	loops.Go(func() { a.reportLoop(loopCtx) })
	loops.Go(func() { a.routes.run(loopCtx) })
	loops.Go(func() { a.logs.run(loopCtx) })
	loops.Go(func() { a.imagesLoop(loopCtx) })
	loops.Go(func() { a.volumesLoop(loopCtx) })

	instancesCtx, endInstances := context.WithCancelCause(after)
	defer endInstances(nil)
	a.mu.Lock()
	for _, inst := range a.instances { // those that were taken over
		a.runInstance(instancesCtx, inst, nil)
	}
	a.mu.Unlock()
	a.assignmentLoop(ctx, instancesCtx)

	if a.LeaveMachines {
		endInstances(errLeft)
	} else {
		endInstances(errors.New("the agent ends"))
	}
	a.running.Wait()
	if !a.LeaveMachines {
		a.removeCgroupParent()
	}
	endLoops()
	loops.Wait()
	// Nobody else reports any more, so that nothing older can arrive after this.
	if err := a.report(after, lastReport); err != nil {
		a.Log.Warn("could not send the last report", "err", err)
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// takeUID gives instance an identity that no other machine of this host has. It is the lowest free one, so
// that the numbers in use stay few.
func (a *Agent) takeUID(instance string) uint32 {
	if a.FirstUID == 0 {
		return uint32(os.Getuid())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid := a.FirstUID; ; uid++ {
		if holder, taken := a.uids[uid]; !taken || holder == instance {
			a.uids[uid] = instance
			return uid
		}
	}
}

// claimUID takes an identity that instance has already.
func (a *Agent) claimUID(uid uint32, instance string) error {
	if a.FirstUID == 0 {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if holder, taken := a.uids[uid]; taken && holder != instance {
		return fmt.Errorf("its user id %d is that of %s", uid, holder)
	}
	a.uids[uid] = instance
	return nil
}

func (a *Agent) giveUID(uid uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.uids, uid)
}

// has tells whether an instance is assigned to this host.
func (a *Agent) has(instance string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.instances[instance] != nil
}

// changed asks for a report soon.
func (a *Agent) changed() {
	select {
	case a.reportc <- struct{}{}:
	default:
	}
}
