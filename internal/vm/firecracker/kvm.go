package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm"
)

const (
	// kvmPatience is how long a guest may take to its first byte. A host where KVM works needs a fraction of a
	// second.
	kvmPatience = 5 * time.Second
	// killPatience is how long a killed probe may take to be gone.
	killPatience = 5 * time.Second
	// probeMemoryMiB is plenty for the kernel and its initramfs.
	probeMemoryMiB = 256
	kvmAnswerName  = "firecracker-probe.json"
)

// kvmAnswer is what a probe found, as it is remembered.
type kvmAnswer struct {
	// Key stands for everything that the answer depends on.
	Key string `json:"key"`
	// Reason says why KVM does not work, or is empty when it does.
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// probeKVM tells why KVM does not work here, or returns nothing when it does. On some nested hosts everything
// works up to the guest's first instructions, so the proof is a boot, of the kernel and initramfs that machines
// will use, to the first byte on the control channel. The answer holds for this kernel, this Firecracker and this
// boot of the host.
func (d *Driver) probeKVM(ctx context.Context, h *host) (reason string, err error) {
	key, err := d.kvmKey(h)
	if err != nil {
		return "", err
	}
	if err := durable.MkdirAll(d.opts.CacheDir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(d.opts.CacheDir, kvmAnswerName)
	var answer kvmAnswer
	// An answer that can't be read is no answer.
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &answer) == nil && answer.Key == key {
		return answer.Reason, nil
	}
	d.opts.Log.Info("booting a machine to see whether KVM works", "patience", kvmPatience)
	if reason, err = d.bootOnce(ctx, h); err != nil {
		return "", err
	}
	b, err := json.Marshal(kvmAnswer{Key: key, Reason: reason, At: time.Now()})
	if err != nil {
		return "", err
	}
	return reason, durable.WriteFile(path, append(b, '\n'), 0o644)
}

func (d *Driver) kvmKey(h *host) (string, error) {
	boot, err := vm.HostBootID()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s\n", boot, h.caps.Version)
	for _, path := range []string{d.opts.Kernel, d.opts.Initramfs} {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		if _, err := io.Copy(sum, f); err != nil {
			f.Close()
			return "", fmt.Errorf("hash %s: %w", path, err)
		}
		f.Close()
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// bootOnce returns why a guest did not come up, or nothing when it did. The error is for what says nothing about
// KVM.
func (d *Driver) bootOnce(ctx context.Context, h *host) (reason string, err error) {
	// A probe that did not get to its end left a machine.
	if err := vm.Clear(ctx, filepath.Join(d.opts.CacheDir, probePattern)); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(d.opts.CacheDir, probePattern)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	spec := vm.Spec{
		ID: "kvm-probe", Dir: dir, Kernel: d.opts.Kernel, Initramfs: d.opts.Initramfs,
		VCPUs: 1, MemoryMiB: probeMemoryMiB, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
	}
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = d.opts.ProbeUID, d.opts.ProbeGID
	}
	m, err := d.start(ctx, h, spec)
	if err != nil {
		return "", err
	}
	reason, err = awaitFirstByte(ctx, m)
	killErr := m.Kill()
	// The end is waited for even when ctx is over: nothing may be left behind.
	waitCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killPatience)
	defer cancel()
	exit, waitErr := m.Wait(waitCtx)
	if waitErr != nil {
		return "", errors.Join(fmt.Errorf("process %d of the probe does not end: %w", m.PID(), waitErr), killErr)
	}
	if err == nil && reason != "" && !exit.Killed {
		reason = "a guest did not come up: " + exit.String()
	}
	return reason, errors.Join(err, killErr)
}

// probePattern matches the directories of probes.
const probePattern = "probe-*"

func awaitFirstByte(ctx context.Context, m *machine) (reason string, err error) {
	conn, err := m.Dial(ctx, vm.Control)
	if err == nil {
		defer func() { _ = conn.Close() }()
		if err = conn.SetReadDeadline(time.Now().Add(kvmPatience)); err == nil {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // what it says does not matter
			_, err = io.ReadFull(conn, make([]byte, 1))
			stop()
		}
	}
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("/dev/kvm opens, but a guest did not come up within %v", kvmPatience), nil
	}
	// The channel broke because the monitor ended; how it did is the reason.
	return err.Error(), nil
}
