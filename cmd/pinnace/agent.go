package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/cmd/pinnace/initbin"
	"github.com/pinnacehq/pinnace/internal/agent"
	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// agentRole is the agent of this host.
type agentRole struct {
	dirs    directories
	servers []string
	// join gives a join token for a host that has not joined, or is not known any more; nil when there is none.
	join          func(context.Context) (string, error)
	hostID        string
	peers         peerFlags
	labels        map[string]string
	kernels       string
	drivers       driverFlags
	uplink        string
	prefix        string
	publicAddress string
	firstUID      uint32
	stopVMs       bool // when the agent ends
	quota         sizeFlag
	reserve       sizeFlag
	scrubRate     sizeFlag
	ioRate        sizeFlag
	ioOperations  int64
	// registries says how registries are spoken to.
	registries func(agent string, notice func(string)) (registry.Options, error)
	log        *slog.Logger
	logLevel   slog.Level

	// What follows is for an agent that is no host's; it is zero for others.

	client  pinnacev1connect.AgentServiceClient // is asked instead of the server
	store   *image.Store                        // is used instead of one of the agent's own
	sharing string                              // names the agent to those that share the store
	volumes string                              // is where volumes are instead of in the agent's directory
}

func (c *cli) newAgent() *cobra.Command {
	var level logFlag
	var tokenFile string
	role := agentRole{registries: c.registryOptions}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this host",
		Long: `Agent runs what the server places on this host: it pulls images, starts microVMs, watches and
restarts them, and routes connections. It needs root. "pinnace doctor" says what this host can
do.

MicroVMs and the proxy outlive the agent, however it ends: the next one takes them over, with no
workload restarted, no connection reset and no line of output lost. A service manager must end the
agent's process alone, not all that it has started (for systemd: KillMode=process). With --stop-vms,
a host that is to be empty stops its microVMs when the agent is told to end.

At its first start it takes a join token ("pinnace host join-token"), which makes this host known to
the server once. Afterwards it has a certificate, which it renews; the token is of no use any more.`,
		Example: `  pinnace agent --agent-server https://10.0.0.1:7401 --token-file join.token
  pinnace agent --agent-server https://10.0.0.1:7401
  pinnace agent --stop-vms   # Ctrl-C empties the host`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if given := c.getenv("PINNACE_JOIN_TOKEN"); given != "" {
				role.join = func(context.Context) (string, error) { return given, nil }
			}
			if tokenFile != "" {
				role.join = func(context.Context) (string, error) {
					text, err := readToken(tokenFile)
					if err != nil {
						return "", fail(exitInvalid, "pinnace host join-token prints one", "read the join token: %w", err)
					}
					return text, nil
				}
			}
			role.log, role.logLevel = c.logger("agent", level.level), level.level
			return role.run(cmd.Context(), nil)
		},
	}
	level.add(cmd, slog.LevelInfo)
	role.dirs.add(cmd)
	role.add(cmd)
	role.peers.add(cmd)
	cmd.Flags().StringSliceVar(&role.servers, "agent-server", []string{"https://127.0.0.1:7401"}, "where servers wait for agents; with several, the agent belongs to one that leads")
	cmd.Flags().BoolVar(&role.stopVMs, "stop-vms", false, "stop this host's microVMs when the agent ends, instead of leaving them to the next one")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with a join token, for a host that is not known yet (or PINNACE_JOIN_TOKEN)")
	return cmd
}

// add gives cmd the flags that dev has too.
func (r *agentRole) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&r.hostID, "host-id", "", "name of this host (default: its host name)")
	flags.StringToStringVar(&r.labels, "label", nil, "labels of this host, NAME=VALUE")
	r.addMachines(cmd)
	flags.StringVar(&r.prefix, "net-prefix", network.DefaultPrefix, "how the names of this agent's network devices begin")
	flags.StringVar(&r.publicAddress, "public-address", "0.0.0.0", "address of this host that public ports are bound on")
	r.quota, r.reserve = sizeFlag{percent: 80, share: true}, sizeFlag{percent: 2, share: true}
	r.scrubRate = sizeFlag{bytes: 8 << 20}
	flags.Var(&r.quota, "image-quota", "what images may take: a size, or a part of the file system; 0 for no bound")
	flags.Var(&r.reserve, "image-reserve", "what pulling an image leaves free on the file system")
	flags.Var(&r.scrubRate, "image-scrub", "how much of the images is read again each second, to find what has rotted; 0 for none")
	flags.Var(&r.ioRate, "vm-io-rate", "how much each microVM may read, and write, of each disk a second; 0 for no bound")
	flags.Int64Var(&r.ioOperations, "vm-io-operations", 0, "how many times each microVM may read, and write, each disk a second; 0 for no bound")
	flags.Uint32Var(&r.firstUID, "first-uid", 700000, "the first of the user ids that VMs run under")
}

// addMachines gives cmd the flags that say how VMs are run.
func (r *agentRole) addMachines(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var((*dirFlag)(&r.kernels), "kernels", "where guest kernels are (default: DATA_DIR/kernels)")
	r.drivers.add(cmd)
	flags.StringVar(&r.uplink, "uplink", "host", `where guests reach the outside through: host, none, or the path of a network namespace`)
}

// run acts for the server until ctx is done. ready, when not nil, gets what this host runs VMs with.
func (r *agentRole) run(ctx context.Context, ready func(*machines)) (err error) {
	if err := needRoot(); err != nil {
		return err
	}
	if err := noCores(); err != nil {
		return err
	}
	opts, err := r.options()
	if err != nil {
		return err
	}
	for _, dir := range []string{opts.Dir, opts.RunDir} {
		held, lockErr := lock(dir)
		if lockErr != nil {
			return lockErr
		}
		defer func() { err = errors.Join(err, held.Unlock()) }()
	}
	if opts.Server == nil {
		member, client, err := r.connect(ctx, opts.Host.Id)
		if err != nil {
			return err
		}
		opts.Server = client
		renewing, endRenewing := context.WithCancel(context.WithoutCancel(ctx)) // also while it stops what runs
		var renewal sync.WaitGroup
		renewal.Go(func() { agent.KeepRenewed(renewing, member, client, r.log) })
		defer renewal.Wait()
		defer endRenewing()
	}
	with, err := r.prepareMachines(ctx, &opts)
	if err != nil {
		return err
	}
	if opts.Images == nil {
		if opts.Images, err = r.openImages(filepath.Join(opts.Dir, "images")); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, opts.Images.Close()) }()
	}

	// An agent that does not get as far as running leaves alone what an earlier one has left: it may be in use.
	proxyLink, endProxy, fresh, err := r.startProxy(ctx)
	if err != nil {
		return err
	}
	opts.Proxy = proxyLink
	ran := false
	toEnd := func() bool { return (ran && r.stopVMs) || (!ran && fresh) }
	defer func() {
		if toEnd() {
			err = errors.Join(err, endProxy())
		}
	}()

	nets, err := r.network()
	if err != nil {
		return err
	}
	opts.Network = nets
	defer func() {
		if toEnd() {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, nets.CleanUp(clean))
		}
		err = errors.Join(err, nets.Close())
	}()

	a, err := agent.New(ctx, opts)
	if err != nil {
		return err
	}
	if ready != nil {
		ready(with)
	}
	ran = true
	debug.FreeOSMemory() // packing an initramfs has taken more than all that follows, and an agent can be idle for long
	return a.Run(ctx)
}

// openImages opens the host's image store with its bounds.
func (r *agentRole) openImages(dir string) (*image.Store, error) {
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var quota image.Quota
	var err error
	if quota.Bytes, err = r.quota.of(dir); err != nil {
		return nil, err
	}
	if quota.Reserve, err = r.reserve.of(dir); err != nil {
		return nil, err
	}
	if quota == (image.Quota{}) {
		quota.Bytes = image.NoQuota // rather than what an earlier agent set
	}
	return image.OpenWith(dir, image.Options{Quota: quota})
}

// options are those that need nothing of the host but a look.
func (r *agentRole) options() (agent.Options, error) {
	host, err := r.facts()
	if err != nil {
		return agent.Options{}, err
	}
	if r.ioOperations < 0 {
		return agent.Options{}, fail(exitInvalid, "", "--vm-io-operations %d is negative", r.ioOperations)
	}
	public, err := netip.ParseAddr(r.publicAddress)
	if err != nil {
		return agent.Options{}, fail(exitInvalid, "", "--public-address: %w", err)
	}
	registries, err := r.registries("pinnace-agent", func(message string) { r.log.Info("registry", "note", message) })
	if err != nil {
		return agent.Options{}, err
	}
	client := registry.New(registries)
	peering, address, err := r.peers.peering(r.identityDir())
	if err != nil {
		return agent.Options{}, err
	}
	host.PeerAddress = address
	return agent.Options{
		Host:   host,
		Dir:    filepath.Join(r.dirs.data, "agent"),
		RunDir: filepath.Join(r.dirs.run, "agent"),
		Server: r.client,
		Images: r.store, LeaseOwner: r.sharing, ScrubRate: r.scrubRate.bytes,
		VolumesDir: r.volumes,
		Source:     func(repository string) image.Source { return repositorySource{client, repository} },
		SourceAs: func(repository string, as agent.Login) image.Source {
			return repositorySource{clientAs(registries, as), repository}
		},

		IO:            cgroup.IORate{Bytes: r.ioRate.bytes, Operations: r.ioOperations},
		PublicAddress: public,
		Peering:       peering,
		FirstUID:      r.firstUID,
		LeaveMachines: !r.stopVMs,
		Log:           r.log,
	}, nil
}

// clientAs is a client with a login. It lives as long as what is pulled with it: the next placement may have another one.
func clientAs(o registry.Options, as agent.Login) *registry.Client {
	o.Keychain = registry.LoggedIn(as.Registry, as.Username, as.Password, o.Keychain)
	return registry.New(o)
}

// repositorySource gives the blobs of one repository.
type repositorySource struct {
	client     *registry.Client
	repository string
}

// Blob implements image.Source.
func (s repositorySource) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	return s.client.Blob(ctx, s.repository, digest, size)
}

// facts are what the server gets to know of this host.
func (r *agentRole) facts() (*pinnacev1.HostFacts, error) {
	id := r.hostID
	if id == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		id = name
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(r.dirs.data, 0o755); err != nil { //nolint:gosec // The roles' own directories below are closed.
		return nil, fail(exitInvalid, "", "make the data directory: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(r.dirs.data, &disk); err != nil {
		return nil, fmt.Errorf("look at the disk of %s: %w", r.dirs.data, err)
	}
	return &pinnacev1.HostFacts{
		Id: id, Name: id, Architecture: runtime.GOARCH, Version: version, Labels: r.labels,
		MemoryBytes: int64(info.Totalram) * int64(info.Unit),
		CpuMilli:    int64(runtime.NumCPU()) * 1000,
		DiskBytes:   int64(disk.Bavail)*disk.Bsize + bookedBytes(filepath.Join(r.dirs.data, "agent")),
	}, nil
}

// prepareMachines finds the kernel, builds the initramfs and sees what a driver can do.
func (r *agentRole) prepareMachines(ctx context.Context, opts *agent.Options) (*machines, error) {
	if err := r.drivers.check(); err != nil {
		return nil, err
	}
	for _, dir := range []string{"boot", "scratch", "probe"} {
		if err := durable.RemoveTemps(filepath.Join(opts.Dir, dir)); err != nil {
			return nil, fmt.Errorf("remove what an earlier run did not finish: %w", err)
		}
	}
	b := bootFiles{
		dir: filepath.Join(opts.Dir, "boot"), cache: filepath.Join(opts.Dir, "probe"), jails: filepath.Join(opts.Dir, "jails"), log: r.log,
	}
	var err error
	if b.source, b.kernel, err = r.kernel(b.dir); err != nil {
		return nil, err
	}
	if b.holder, err = installHolder(b.dir); err != nil {
		return nil, err
	}
	m, err := r.drivers.choose(ctx, b)
	if err != nil {
		return nil, err
	}
	r.log.Info("microVMs", "driver", m.can.Driver, "version", m.can.Version, "accelerator", m.can.Accelerator, "kernel", m.kernel.Release, "why", m.why)
	if m.can.Accelerator == "tcg" {
		r.log.Warn("VMs are emulated in software: slow, and no security boundary; for development only", "why", m.can.Reason)
	}
	opts.Driver, opts.Kernel = m.driver, m.kernel
	opts.Host.Driver, opts.Host.Accelerator = m.can.Driver, m.can.Accelerator
	opts.Scratch = vm.NewScratch(filepath.Join(opts.Dir, "scratch")).Make
	return m, nil
}

// kernelsDir is where guest kernels are.
func (r *agentRole) kernelsDir() string {
	if r.kernels != "" {
		return r.kernels
	}
	return filepath.Join(r.dirs.data, "kernels")
}

// kernel finds the kernel that was chosen, or else the newest fit one, and builds its initramfs.
func (r *agentRole) kernel(cacheDir string) (kernel.Source, *kernel.Kernel, error) {
	src, err := kernel.Choose(r.kernelsDir())
	if err != nil {
		return kernel.Source{}, nil, fail(exitInvalid, kernelHint(err), "%w", err)
	}
	init, err := initbin.Init()
	if err != nil {
		return kernel.Source{}, nil, fail(exitInvalid, "", "%w", err)
	}
	k, err := src.Prepare(cacheDir, init)
	return src, k, err
}

// kernelHint says what to do about an error of kernel.Choose.
func kernelHint(err error) string {
	if errors.Is(err, kernel.ErrNoKernel) && !errors.Is(err, kernel.ErrChosen) {
		return "scripts/get-kernel.sh fetches one, without installing it"
	}
	return "pinnace kernel ls shows those that are there; pinnace kernel use chooses another"
}

// installHolder writes the program that holds monitors into dir and returns its path. Holders that run from a file of
// an earlier version don't miss it.
func installHolder(dir string) (string, error) {
	program, ok := initbin.Holder()
	if !ok {
		return "", nil // the driver starts this program by that name
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%.12x", holder.Name, sha256.Sum256(program)))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	old, err := filepath.Glob(filepath.Join(dir, holder.Name+"-*"))
	if err != nil {
		return "", err
	}
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			return "", err
		}
	}
	return path, durable.WriteFile(path, program, 0o755)
}

func (r *agentRole) network() (*network.Manager, error) {
	uplink := network.Uplink{Mode: network.UplinkHost}
	switch r.uplink {
	case "host":
	case "none":
		uplink.Mode = network.UplinkNone
	default:
		uplink = network.Uplink{Mode: network.UplinkNetns, Netns: r.uplink}
	}
	return network.New(network.Options{
		RunDir: filepath.Join(r.dirs.run, "network"), Prefix: r.prefix, Uplink: uplink, Log: r.log,
	})
}
