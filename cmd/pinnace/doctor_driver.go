package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// examineKernel finds the kernel that microVMs would boot and prepares it in dir.
func (r *agentRole) examineKernel(dir string) (bootFiles, finding) {
	b := bootFiles{dir: dir, log: r.log}
	var err error
	if b.source, b.kernel, err = r.kernel(dir); err != nil {
		_, message, hint := describe(err)
		return b, bad("kernel", message, hint)
	}
	detail := fmt.Sprintf("Linux %s, %s", b.kernel.Release, b.source.Origin())
	return b, good("kernel", detail)
}

// examine looks at each driver, and says which one would be taken.
func (f *driverFlags) examine(ctx context.Context, b bootFiles) []finding {
	var fc machines
	fcErr := f.tryFirecracker(ctx, b, &fc)
	fcLine := finding{Name: driverFirecracker, OK: true, Detail: "version " + fc.can.Version + " with its jailer, and KVM boots a guest"}
	if fcErr != nil {
		fcLine = note(driverFirecracker, "not usable: "+whyNot(fcErr), fixOf(fcErr))
	}
	var can vm.Capabilities
	q, qErr := f.qemuDriver(b)
	if qErr == nil {
		can, qErr = q.Probe(ctx)
	}
	qLine := finding{Name: driverQEMU, OK: true, Detail: "version " + can.Version}
	if qErr != nil {
		qLine = note(driverQEMU, "not usable: "+whyNot(qErr), fixOf(qErr))
	}
	found := []finding{fcLine, qLine}
	switch {
	case fcErr == nil && f.name != driverQEMU:
		can = fc.can
	case qErr == nil && f.name != driverFirecracker:
	case f.name == driverAuto:
		return append(found, bad("driver", "neither Firecracker nor QEMU is usable", "see above: one of them is enough; "+fixOf(qErr)))
	default:
		return append(found, bad("driver", f.name+", which --driver asks for, is not usable", "see above, or use --driver auto"))
	}
	accelerator := finding{Name: "accelerator", OK: true, Detail: "kvm: a guest boots under it"}
	if can.Accelerator != "kvm" {
		accelerator = note("accelerator", fmt.Sprintf("%s, emulation in software: slow, and no security boundary; for development only. No KVM: %s",
			can.Accelerator, can.Reason), "use a host whose processors have virtualization switched on, or a virtual machine with nesting that works")
	}
	return append(found, good("driver", fmt.Sprintf("%s %s runs microVMs", can.Driver, can.Version)), accelerator, protections(can.Weaknesses))
}

// whyNot is why a driver is not usable, without what to do about it.
func whyNot(err error) string {
	if missing, ok := errors.AsType[*vm.MissingError](err); ok {
		return missing.Err.Error()
	}
	return err.Error()
}

// fixOf is what to do about a driver that is not usable.
func fixOf(err error) string {
	missing, ok := errors.AsType[*vm.MissingError](err)
	switch {
	case ok && missing.Package != "":
		return "apt-get install " + missing.Package
	case ok:
		return missing.Hint
	case err != nil && strings.Contains(err.Error(), "KVM"):
		return "it takes a host on which KVM runs guests"
	}
	return ""
}
