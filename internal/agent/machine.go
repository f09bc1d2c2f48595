package agent

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// Serials of a machine's disks. Layers have "layer0" and so on.
const (
	serialMeta    = "meta"
	serialScratch = "scratch"
)

// machineSpec says what machine the attempt needs.
func (t *attempt) machineSpec(set image.DiskSet) vm.Spec {
	res := t.workload.manifest.Resources
	spec := vm.Spec{
		ID:        fmt.Sprintf("%s.%d", t.id, t.number),
		Dir:       t.dir,
		Kernel:    t.agent.Kernel.Path,
		Initramfs: t.agent.Kernel.Initramfs,
		VCPUs:     vcpus(res.CPUMilli),
		MemoryMiB: int(res.MemoryBytes >> 20),
		NIC:       &vm.NIC{Tap: t.attachment.Tap, MAC: t.attachment.MAC.String()},
		Netns:     t.attachment.Netns,
		UID:       t.uid,
		GID:       t.uid,
		Cgroup:    fmt.Sprintf("%s/%s.%d", t.agent.cgroupParent(), t.id, t.number),
		CPUMilli:  res.CPUMilli,
		IO:        t.agent.IO,
		Console:   filepath.Join(t.dir, "console"),
		Disks:     []vm.Disk{{ID: serialMeta, Path: set.Metadata, ReadOnly: true}},
	}
	for i, d := range set.Drives {
		spec.Disks = append(spec.Disks, vm.Disk{ID: driveSerial(i), Path: d.Path, ReadOnly: true})
	}
	spec.Disks = append(spec.Disks, vm.Disk{ID: serialScratch, Path: t.scratchPath()})
	t.attachVolumes(&spec)
	return spec
}

func driveSerial(n int) string { return fmt.Sprintf("layer%d", n) }

// vcpus is the number of virtual processors for a request in thousandths of one.
func vcpus(milli int64) int { return max(1, int((milli+999)/1000)) }

// guestConfig says what the guest is to run, and on what.
func (t *attempt) guestConfig(set image.DiskSet) guest.Config {
	c := guest.Config{
		Hostname: t.id,
		Disks:    []guest.Disk{{Role: guest.RoleRootMeta, Serial: serialMeta, Order: 0, UUID: t.image.UUID}},
		Network:  guestNetwork(t.attachment),
		Process:  process(t.workload.manifest, t.image.Config, t.workload.vars),
	}
	for i, d := range set.Drives {
		role := guest.RoleLayer
		if d.Pack {
			role = guest.RolePack
		}
		c.Disks = append(c.Disks, guest.Disk{Role: role, Serial: driveSerial(i), Order: i + 1})
	}
	for _, l := range set.Layers {
		// Disk 0 is the metadata, so drive n is disk n+1.
		c.LayerSlots = append(c.LayerSlots, guest.LayerSlot{Disk: l.Drive + 1, Partition: l.Partition})
	}
	c.Disks = append(c.Disks, guest.Disk{Role: guest.RoleScratch, Serial: serialScratch, Order: len(c.Disks)})
	t.mountVolumes(&c)
	return c
}

func guestNetwork(at *network.Attachment) *guest.Network {
	return &guest.Network{
		MAC:       at.MAC.String(),
		Addresses: []string{at.IPv4.String(), at.IPv6.String()},
		Gateway4:  at.Gateway4.String(),
		Gateway6:  at.Gateway6.String(),
		MTU:       at.MTU,
		DNS:       []string{at.Gateway4.String()},
		Search:    []string{"internal"},
	}
}

// process merges what the image says about its process with what the manifest says, by the rules of
// MANIFEST: the manifest wins, its entrypoint clears the image's Cmd, and nothing else of the image counts.
func process(m *manifest.Manifest, cfg image.Config, vars map[string]string) guest.Process {
	p := guest.Process{
		Entrypoint: cfg.Entrypoint,
		Cmd:        cfg.Cmd,
		WorkDir:    firstOf(m.Workdir, cfg.WorkingDir),
		User:       firstOf(m.User, cfg.User),
		StopSignal: firstOf(m.Stop.Signal, gentle(cfg.StopSignal)),
	}
	if m.Entrypoint != nil {
		p.Entrypoint, p.Cmd = m.Entrypoint, nil
	}
	if m.Command != nil {
		p.Cmd = m.Command
	}
	env := map[string]string{}
	for _, kv := range cfg.Env {
		name, value, _ := strings.Cut(kv, "=")
		// The prefix is the platform's, for images as it is for manifests.
		if !strings.HasPrefix(name, "PINNACE_") {
			env[name] = value
		}
	}
	maps.Copy(env, m.Env)
	maps.Copy(env, vars)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		p.Env = append(p.Env, name+"="+env[name])
	}
	return p
}

// gentle is the stop signal of an image, unless it is one that no process can act on: stopping in order would
// then not be in the manifest's hands any more.
func gentle(signal string) string {
	switch strings.TrimPrefix(strings.ToUpper(signal), "SIG") {
	case "KILL", "9", "STOP", "19":
		return ""
	}
	return signal
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
