package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// Probe implements vm.Driver. The first call looks at the host, and boots a machine when KVM's state is not known
// for this kernel and this boot of the host; later calls return the same answer. There is an error on hosts where
// KVM does not work.
func (d *Driver) Probe(ctx context.Context) (vm.Capabilities, error) {
	h, err := d.found(ctx)
	if err != nil {
		return vm.Capabilities{}, fmt.Errorf("look for Firecracker: %w", err)
	}
	return h.caps, nil
}

// found returns what the driver knows of the host, and finds it out first when it does not. An error is not
// remembered: what is missing may be installed meanwhile.
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
	h := &host{caps: vm.Capabilities{Driver: d.Name(), Accelerator: "kvm", MaxDisks: maxDisks(), OverheadMiB: overheadMiB}}
	if err := d.findPrograms(ctx, h); err != nil {
		return nil, err
	}
	if err := d.needs(); err != nil {
		return nil, err
	}
	if err := checkJailDir(d.opts.JailDir); err != nil {
		return nil, err
	}
	hierarchy, err := cgroup.Find()
	if err != nil {
		h.caps.Weaknesses = append(h.caps.Weaknesses, fmt.Sprintf("the memory of monitors is not limited: %v", err))
	} else {
		h.hierarchy = &hierarchy
		if weakness := hierarchy.Weakness(); weakness != "" {
			h.caps.Weaknesses = append(h.caps.Weaknesses, weakness)
		}
	}
	if !canLimit() {
		h.caps.Weaknesses = append(h.caps.Weaknesses, "no CAP_SYS_RESOURCE: a monitor that crashes may leave a core file with the guest's memory")
	}
	reason, err := d.probeKVM(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("probe KVM: %w", err)
	}
	if reason != "" {
		return nil, fmt.Errorf("KVM does not work here, and Firecracker has nothing else: %s", reason)
	}
	return h, nil
}

// needRootAndKVM says what a host lacks before anything is tried.
func needRootAndKVM() error {
	if os.Geteuid() != 0 {
		return errors.New("the jailer needs root: it makes devices, enters namespaces and changes its identity")
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrNotExist):
		return errors.New("this host has no /dev/kvm: its processor's virtualization is off, or it is a virtual machine without nesting")
	}
	return fmt.Errorf("/dev/kvm cannot be opened: %w", err)
}

// checkJailDir makes the directory for jails and tells whether its mount allows what is in them.
func checkJailDir(dir string) error {
	if err := durable.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make the directory for jails: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	for flag, name := range map[int64]string{unix.ST_NODEV: "nodev", unix.ST_NOEXEC: "noexec"} {
		if st.Flags&flag != 0 {
			return fmt.Errorf("%s is on a file system that is mounted with %s: a jail there could hold neither Firecracker nor its devices", dir, name)
		}
	}
	return nil
}

// canLimit tells whether the caller may set limits of another user's process, which root in a container often may
// not.
func canLimit() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
