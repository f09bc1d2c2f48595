package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// pull makes the image complete in the host's store. A cached one makes no request.
func (t *attempt) pull(ctx context.Context) (string, error) {
	p := t.workload.release.Platform
	img, cached, err := t.agent.Images.Lookup(p.ManifestDigest)
	if err != nil {
		return "", err
	}
	if !cached {
		show := throttle(250*time.Millisecond, func(p image.Progress) {
			t.setState(statePulling, "pulling layer %d of %d: %s of %s", p.Layer+1, p.Layers, mib(p.Bytes), mib(p.Total))
		})
		img, err = t.agent.Images.Pull(ctx, t.agent.source(t.workload.release.Sources), p.ManifestDigest,
			p.ImageManifest, p.ImageConfig, show)
		if err != nil {
			return "", err
		}
	}
	t.image = img
	detail := fmt.Sprintf("%d layers", len(img.Layers))
	if cached {
		detail += ", cached"
	}
	return detail, nil
}

// attach makes the instance's place in its environment's network, and sees that its ports can be bound
// before anything is started.
func (t *attempt) attach(ctx context.Context) (string, error) {
	env := t.assignment.Environment
	if _, err := t.agent.Network.EnsureEnvironment(ctx, env); err != nil {
		return "", err
	}
	t.uid = t.agent.takeUID(t.id)
	t.onCleanUp(func(context.Context) error { t.agent.giveUID(t.uid); return nil })
	at, err := t.agent.Network.Attach(ctx, env, t.id, t.uid)
	if err != nil {
		return "", err
	}
	t.attachment = at
	t.onCleanUp(func(ctx context.Context) error { return t.agent.Network.Detach(ctx, env, t.id) })
	t.set(func(r *pinnacev1.InstanceReport) { r.Address = at.IPv4.Addr().String() })

	t.agent.routes.join(t)
	t.onCleanUp(func(ctx context.Context) error { return t.agent.routes.leave(ctx, t.id) })
	if err := t.agent.routes.sync(ctx); err != nil {
		return "", err
	}
	if err := t.agent.routes.bindError(t.id); err != nil {
		return "", err
	}
	return at.IPv4.Addr().String(), nil
}

func (t *attempt) makeDisks(ctx context.Context) (string, error) {
	if err := t.makeDir(); err != nil {
		return "", err
	}
	size := t.workload.manifest.Resources.DiskBytes
	if err := t.agent.Scratch(ctx, t.scratchPath(), size); err != nil {
		return "", fmt.Errorf("make the scratch disk: %w", err)
	}
	return "scratch " + mib(size), nil
}

func (t *attempt) scratchPath() string { return filepath.Join(t.dir, "scratch.ext4") }

// startMachine starts the microVM and begins the conversation with its init.
func (t *attempt) startMachine(ctx context.Context) (string, error) {
	set, err := t.agent.Images.Disks(t.image, image.LayerDrives)
	if err != nil {
		return "", err
	}
	m, err := t.agent.Driver.Start(ctx, t.machineSpec(set))
	if err != nil {
		return "", err
	}
	t.machine = m
	t.onCleanUp(func(ctx context.Context) error {
		killErr := m.Kill()
		_, err := m.Wait(ctx)
		return errors.Join(killErr, err)
	})
	control, err := m.Dial(ctx, vm.Control)
	if err != nil {
		return "", err
	}
	logs, err := m.Dial(ctx, vm.Logs)
	if err != nil {
		return "", errors.Join(err, control.Close())
	}
	t.guest = guest.NewHost(control, logs, guest.Options{Logs: func(l guest.Line) error {
		return t.agent.logs.append(t.id, t.number, l)
	}})
	t.guestDone = make(chan struct{})
	sessionCtx, endSession := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(t.guestDone)
		t.log.Debug("the session with the guest ended", "err", t.guest.Run(sessionCtx))
	}()
	t.onCleanUp(func(context.Context) error {
		endSession()
		<-t.guestDone
		return nil
	})
	rec := m.Record()
	return fmt.Sprintf("%s, pid %d", rec.Driver, m.PID()), nil
}

// awaitHello waits for the guest's kernel to boot as far as init's first word.
func (t *attempt) awaitHello(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, helloWait)
	defer cancel()
	hello, err := t.guest.Hello(ctx)
	if err != nil {
		return "", err
	}
	booted, err := t.booted(ctx)
	if err != nil {
		return "", err
	}
	t.set(func(r *pinnacev1.InstanceReport) { r.Booted = booted })
	return "Linux " + hello.Kernel, nil
}

// booted are the facts of what this attempt runs, for the event log.
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
	set, err := t.agent.Images.Disks(t.image, image.LayerDrives)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	started, err := t.guest.Configure(ctx, t.guestConfig(set))
	if err != nil {
		return "", err
	}
	t.setState(stateStarted, "waiting to become ready")
	return fmt.Sprintf("process %d in the guest", started.PID), nil
}

// throttle calls f at most once per interval.
func throttle[T any](interval time.Duration, f func(T)) func(T) {
	gate := make(chan time.Time, 1)
	gate <- time.Time{}
	return func(v T) {
		select {
		case last := <-gate:
			now := time.Now()
			if now.Sub(last) < interval {
				gate <- last
				return
			}
			f(v)
			gate <- now
		default: // somebody else is showing something just now
		}
	}
}

func mib(bytes int64) string {
	if bytes < 10<<20 {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d MiB", bytes>>20)
}
