package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// attach makes the instance's place in its environment's network, and sees that its ports can be bound
// before anything is started.
func (t *attempt) attach(ctx context.Context) (string, error) {
	env, routes := t.assignment.Environment, t.agent.routes
	t.uid = t.agent.takeUID(t.id)
	t.onCleanUp(func(context.Context) error { t.agent.giveUID(t.uid); return nil })
	// On record before anything is made outside of this process.
	if err := t.makeDir(); err != nil {
		return "", err
	}
	if err := t.keep(); err != nil {
		return "", err
	}
	if err := routes.enter(ctx, env); err != nil {
		return "", err
	}
	t.onCleanUp(func(context.Context) error { routes.exit(env); return nil })
	at, err := t.agent.Network.Attach(ctx, env, t.id, t.uid)
	if err != nil {
		return "", err
	}
	t.attachment = at
	t.onCleanUp(func(ctx context.Context) error { return t.agent.Network.Detach(ctx, env, t.id) })
	if err := t.agent.Network.SetEgress(ctx, env, t.id, egress(t.workload.manifest)); err != nil {
		return "", err
	}
	t.set(func(r *pinnacev1.InstanceReport) { r.Address = at.IPv4.Addr().String() })

	if err := routes.join(t); err != nil {
		return "", err
	}
	t.onCleanUp(func(ctx context.Context) error { return routes.leave(ctx, t.id) })
	if err := routes.sync(ctx).of(env); err != nil {
		return "", err
	}
	if err := routes.bindError(t.id); err != nil {
		return "", err
	}
	return at.IPv4.Addr().String(), nil
}

// egress is what the manifest lets its instances reach outside.
func egress(m *manifest.Manifest) network.Egress { return network.Egress(m.Network.Egress) }

func (t *attempt) makeDisks(ctx context.Context) (string, error) {
	size := t.workload.manifest.Resources.DiskBytes
	t.onCleanUp(func(context.Context) error { return t.removeScratch() })
	if err := t.agent.Scratch(ctx, t.scratchPath(), size); err != nil {
		return "", fmt.Errorf("make the scratch disk: %w", err)
	}
	t.onCleanUp(func(context.Context) error { t.letGoOfVolumes(); return nil })
	volumes, err := t.takeVolumes(ctx)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix("scratch "+mib(size)+", "+volumes, ", "), nil
}

// scratchPath is on the file system whose room the server knows, which RunDir, often memory, is not.
func (t *attempt) scratchPath() string {
	return filepath.Join(t.agent.disksDir(), fmt.Sprintf("%s.%d%s", t.id, t.number, scratchSuffix))
}

// scratchSuffix ends the names of scratch disks; before it come the instance and the number of the attempt.
const scratchSuffix = ".scratch"

func (t *attempt) removeScratch() error {
	err := os.Remove(t.scratchPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// startMachine starts the microVM and begins the conversation with its init.
func (t *attempt) startMachine(ctx context.Context) (string, error) {
	set, err := t.imageDisks(ctx)
	if err != nil {
		return "", err
	}
	if t.boots, err = t.booted(ctx); err != nil {
		return "", err
	}
	t.keepOrSay()
	m, err := t.agent.Driver.Start(ctx, t.machineSpec(set))
	if err != nil {
		if !errors.Is(err, vm.ErrJail) {
			t.next("vmm", "", t.began)
		}
		return "", err
	}
	t.next("vmm", "", m.Record().StartedAt) // which is when the monitor was started
	// From here on they are held for as long as the machine runs, with or without this agent.
	t.letGoOfVolumes()
	t.machine = m
	t.onCleanUp(t.endMachine)
	if err := t.bear(); err != nil {
		return "", err
	}
	control, err := m.Dial(ctx, vm.Control)
	if err != nil {
		return "", err
	}
	logs, err := m.Dial(ctx, vm.Logs)
	if err != nil {
		return "", errors.Join(err, control.Close())
	}
	t.converse(ctx, control, logs, guest.Options{})
	rec := m.Record()
	return fmt.Sprintf("%s, pid %d", rec.Driver, m.PID()), nil
}

// converse begins the conversation with the guest. It ends with the attempt, whatever becomes of ctx.
func (t *attempt) converse(ctx context.Context, control, logs guest.Conn, opts guest.Options) {
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	opts.Logs = func(lines []guest.Line) error { return t.keepLines(ctx, lines) }
	t.guest = guest.NewHost(control, logs, opts)
	t.session = make(chan struct{})
	go func() {
		defer close(t.session)
		t.sessionErr = t.guest.Run(ctx)
	}()
	t.endSession = end
	t.onCleanUp(func(context.Context) error { t.hangUp(); return nil })
}

// hangUp ends the conversation with the guest, if there is one.
func (t *attempt) hangUp() {
	if t.session != nil {
		t.endSession()
		<-t.session
	}
}

// keepLines stores lines of output. While that cannot be done, because the disk is full for instance, the guest
// keeps its lines and counts those that it must drop: a host that cannot write logs still runs its workloads.
func (t *attempt) keepLines(ctx context.Context, lines []guest.Line) error {
	for first := true; ; first = false {
		kept, err := t.agent.logs.append(t.id, t.number, lines...)
		if err == nil {
			return nil
		}
		lines = lines[kept:]
		if first {
			t.log.Error("keep the output of an instance; trying until it works", "err", err)
		}
		timer := time.NewTimer(t.agent.timing.keepLine)
		select {
		case <-timer.C:
			continue
		case <-ctx.Done():
		case <-t.guest.Done():
		}
		timer.Stop()
		return err
	}
}

// awaitHello waits for the guest's kernel to boot as far as init's first word.
func (t *attempt) awaitHello(ctx context.Context) (string, error) {
	patience := t.agent.timing.hello
	waitCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	hello, err := t.guest.Hello(waitCtx)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the guest did not come up: init has said nothing within %s", patience)
		}
		return "", err
	}
	t.bootedAt, t.nonce, t.protocol = time.Now(), hello.Nonce, hello.Version
	t.log.Debug("init has said hello", "guest_ms", marks(hello.Marks))
	if t.boots == nil { // it was begun by an agent that did not keep that
		if t.boots, err = t.booted(ctx); err != nil {
			return "", err
		}
	}
	boots := t.boots
	t.set(func(r *pinnacev1.InstanceReport) { r.Booted = boots })
	return "Linux " + hello.Kernel, nil
}

// booted are the facts of what a machine that is started now runs, for the event log. They are kept with the attempt:
// an agent that takes it over may have another kernel or driver.
func (t *attempt) booted(ctx context.Context) (*pinnacev1.Booted, error) {
	can, err := t.agent.Driver.Probe(ctx)
	if err != nil {
		return nil, err
	}
	k := t.agent.Kernel
	return &pinnacev1.Booted{
		ManifestHash:        t.workload.release.ManifestHash,
		ImageManifestDigest: t.image.ManifestDigest,
		DiffIds:             t.image.DiffIDs,
		RootfsSha256:        t.image.MetadataSHA256,
		Converter:           t.image.Converter,
		KernelSha256:        k.SHA256,
		KernelVersion:       k.Release,
		InitramfsSha256:     k.InitramfsSHA256,
		Driver:              can.Driver,
		DriverVersion:       can.Version,
		Accelerator:         can.Accelerator,
	}, nil
}

// configure gives the guest its configuration and waits until the workload's process runs.
func (t *attempt) configure(ctx context.Context) (string, error) {
	set, err := t.imageDisks(ctx)
	if err != nil {
		return "", err
	}
	patience := t.agent.timing.start
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	config := t.guestConfig(set)
	secrets, err := t.addSecrets(&config)
	if err != nil {
		return "", err
	}
	t.keepOrSay() // with their versions
	started, err := t.guest.Configure(ctx, config, secrets...)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("init has not run the workload within %s", patience)
		}
		return "", err
	}
	t.startedAt = time.Now()
	t.next("exec", "", t.startedAt.Add(-lastStep(started.Marks)))
	t.log.Debug("init has run the workload", "guest_ms", marks(started.Marks))
	t.setState(stateStarted, "waiting to become ready")
	return fmt.Sprintf("process %d in the guest", started.PID), nil
}

// lastStep is how long the last step of init took, which is to start the process.
func lastStep(all []guest.Mark) time.Duration {
	if len(all) < 2 {
		return 0
	}
	return time.Duration(all[len(all)-1].MS-all[len(all)-2].MS) * time.Millisecond
}

// marks are the moments of a boot as init has noted them, "NAME=MS NAME=MS …".
func marks(all []guest.Mark) string {
	words := make([]string, len(all))
	for i, m := range all {
		words[i] = fmt.Sprintf("%s=%d", m.Name, m.MS)
	}
	return strings.Join(words, " ")
}
