package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// Probe implements vm.Driver. The first call looks at the host, and boots a machine when KVM's state is
// not known for this kernel and this boot of the host; later calls return the same answer.
func (d *Driver) Probe(ctx context.Context) (vm.Capabilities, error) {
	h, err := d.found(ctx)
	if err != nil {
		return vm.Capabilities{}, fmt.Errorf("look for QEMU: %w", err)
	}
	return h.caps, nil
}

// found returns what the driver knows of the host, and finds it out first when it does not. An error is
// not remembered: what is missing may be installed meanwhile.
func (d *Driver) found(ctx context.Context) (*host, error) {
	d.probing.Lock()
	defer d.probing.Unlock()
	if d.host != nil {
		return d.host, nil
	}
	h, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	d.host = h
	return h, nil
}

func (d *Driver) look(ctx context.Context) (*host, error) {
	h := &host{}
	var err error
	if h.binary, err = findBinary(d.opts.Binary); err != nil {
		return nil, err
	}
	h.caps = vm.Capabilities{Driver: d.Name(), MaxDisks: maxDisks, OverheadMiB: overheadMiB}
	if h.caps.Version, err = version(ctx, h.binary); err != nil {
		return nil, err
	}
	h.tscKHz = measureTSC()
	h.hierarchy = d.findHierarchy(&h.caps)
	accel, reason, err := d.chooseAccel(ctx, h)
	if err != nil {
		return nil, err
	}
	h.caps.Accelerator, h.caps.Reason = string(accel), reason
	if accel == TCG {
		h.caps.OverheadMiB += d.opts.TranslationCacheMiB
		h.caps.Weaknesses = append(h.caps.Weaknesses, "guests are emulated (TCG), which is no security boundary: for development only")
	}
	if !jailed() {
		h.caps.Weaknesses = append(h.caps.Weaknesses, "not root: monitors run as the caller, see its files and its network")
	}
	if jailed() && !canLimit() {
		h.caps.Weaknesses = append(h.caps.Weaknesses, "no CAP_SYS_RESOURCE: monitors keep the caller's resource limits")
	}
	return h, nil
}

func (d *Driver) findHierarchy(caps *vm.Capabilities) *cgroup.Hierarchy {
	hierarchy, err := cgroup.Find()
	if err != nil {
		caps.Weaknesses = append(caps.Weaknesses, fmt.Sprintf("the memory of monitors is not limited: %v", err))
		return nil
	}
	if weakness := hierarchy.Weakness(); weakness != "" {
		caps.Weaknesses = append(caps.Weaknesses, weakness)
	}
	return &hierarchy
}

// chooseAccel decides between KVM and TCG and says why when it is not KVM.
func (d *Driver) chooseAccel(ctx context.Context, h *host) (Accel, string, error) {
	if d.opts.Accel == TCG {
		return TCG, "TCG was asked for", nil
	}
	kvmErr := openKVM()
	if d.opts.Accel == KVM {
		if kvmErr != nil {
			return "", "", fmt.Errorf("KVM was asked for: %w", kvmErr)
		}
		return KVM, "", nil
	}
	if kvmErr != nil {
		return TCG, kvmErr.Error(), nil
	}
	reason, err := d.probeKVM(ctx, h)
	if err != nil {
		return "", "", fmt.Errorf("probe KVM: %w", err)
	}
	if reason != "" {
		return TCG, reason, nil
	}
	return KVM, "", nil
}

// openKVM tells why /dev/kvm cannot be opened, if so. That it can be opened proves nothing yet.
func openKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrNotExist):
		return errors.New("this host has no /dev/kvm: its processor's virtualization is off, or it is a virtual machine without nesting")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/kvm may not be opened by this user: run as root, or join the group kvm")
	}
	return fmt.Errorf("/dev/kvm cannot be opened: %w", err)
}
