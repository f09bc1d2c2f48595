package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits are what the processes of a group may use together. What is 0 is not limited, and of what the host has no
// controller for nothing is; see Hierarchy.Missing.
type Limits struct {
	// Memory is in bytes. There is no swap beside it, where the host can say so.
	Memory int64
	// CPUMilli is the group's weight against its siblings, in thousandths of a processor.
	CPUMilli int64
	// PIDs is the number of processes and threads.
	PIDs int64
	// IO is for each of Devices.
	IO      IORate
	Devices []Device
}

// An IORate bounds reading and writing, each by itself, each second. Version 1 does not count what is written through the
// host's page cache.
type IORate struct {
	Bytes, Operations int64
}

// A Device is a whole disk, by its number.
type Device struct{ Major, Minor uint32 }

func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// makeParents makes the groups above name, hands their controllers down, which version 2 wants level by level, and gives
// the groups of all monitors together the weight of a busy host.
func (h Hierarchy) makeParents(name string) error {
	parent := ""
	for part := range strings.SplitSeq(filepath.Clean(name), "/") {
		for c, m := range h.mounts {
			if m.version != 2 {
				continue
			}
			if err := write(filepath.Join(m.path, parent), "cgroup.subtree_control", "+"+string(c)); err != nil {
				return fmt.Errorf("hand the %s controller down: %w", c, err)
			}
		}
		parent = filepath.Join(parent, part)
		if parent == filepath.Clean(name) {
			return nil
		}
		for _, path := range h.paths(parent) {
			if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("create cgroup: %w", err)
			}
		}
		// Otherwise all monitors together would weigh as much as one process beside them.
		if err := h.weigh(parent, int64(runtime.NumCPU())*1000); err != nil {
			return err
		}
	}
	return nil
}

func (h Hierarchy) limit(name string, l Limits) error {
	if l.Memory > 0 {
		if err := h.limitMemory(name, l.Memory); err != nil {
			return err
		}
	}
	if l.CPUMilli > 0 {
		if err := h.weigh(name, l.CPUMilli); err != nil {
			return err
		}
	}
	if m, ok := h.mounts[PIDs]; ok && l.PIDs > 0 {
		if err := write(filepath.Join(m.path, name), "pids.max", strconv.FormatInt(l.PIDs, 10)); err != nil {
			return fmt.Errorf("limit cgroup to %d processes: %w", l.PIDs, err)
		}
	}
	return h.limitIO(name, l)
}

func (h Hierarchy) limitMemory(name string, bytes int64) error {
	path, value := filepath.Join(h.Mount, name), strconv.FormatInt(bytes, 10)
	limit, swap, noSwap := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", value
	if h.Version == 2 {
		limit, swap, noSwap = "memory.max", "memory.swap.max", "0"
	}
	if err := write(path, limit, value); err != nil {
		return fmt.Errorf("limit cgroup to %d bytes: %w", bytes, err)
	}
	// Hosts without swap accounting have no such file.
	if err := write(path, swap, noSwap); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("keep cgroup out of swap: %w", err)
	}
	return nil
}

// Bounds of the kernel's weights.
const (
	minShares, maxShares = 2, 262144 // version 1; a processor is 1024
	minWeight, maxWeight = 1, 10000  // version 2
)

// weigh sets the weight of a group.
func (h Hierarchy) weigh(name string, milli int64) error {
	m, ok := h.mounts[CPU]
	if !ok {
		return nil
	}
	shares := min(max(milli*1024/1000, minShares), maxShares)
	file, value := "cpu.shares", shares
	if m.version == 2 {
		// The whole range of the one on the whole range of the other, as everybody does it who has both.
		file, value = "cpu.weight", minWeight+(shares-minShares)*(maxWeight-minWeight)/(maxShares-minShares)
	}
	if err := write(filepath.Join(m.path, name), file, strconv.FormatInt(value, 10)); err != nil {
		return fmt.Errorf("weigh cgroup: %w", err)
	}
	return nil
}

func (h Hierarchy) limitIO(name string, l Limits) error {
	m, ok := h.mounts[IO]
	if !ok || l.IO == (IORate{}) {
		return nil
	}
	path := filepath.Join(m.path, name)
	for _, d := range l.Devices {
		if err := limitDevice(path, m.version, d, l.IO); err != nil {
			return fmt.Errorf("limit cgroup's use of disk %v: %w", d, err)
		}
	}
	return nil
}

func limitDevice(path string, version int, d Device, r IORate) error {
	if version == 2 {
		line := d.String()
		if r.Bytes > 0 {
			line += fmt.Sprintf(" rbps=%d wbps=%d", r.Bytes, r.Bytes)
		}
		if r.Operations > 0 {
			line += fmt.Sprintf(" riops=%d wiops=%d", r.Operations, r.Operations)
		}
		return write(path, "io.max", line)
	}
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"read_bps", r.Bytes}, {"write_bps", r.Bytes}, {"read_iops", r.Operations}, {"write_iops", r.Operations},
	} {
		if f.n <= 0 {
			continue
		}
		if err := write(path, "blkio.throttle."+f.name+"_device", fmt.Sprintf("%v %d", d, f.n)); err != nil {
			return err
		}
	}
	return nil
}

func write(dir, file, value string) error {
	// O_CREATE would turn a missing file into "permission denied".
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// DevicesOf are the disks under the file systems of files, each once. A file system that is on no disk that the kernel
// knows as one, such as one in memory, is an error: its IO cannot be bounded.
func DevicesOf(files []string) ([]Device, error) { return devicesOf("/sys", files) }

func deviceOf(file string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return Device{}, fmt.Errorf("find the disk under %s: %w", file, err)
	}
	return Device{unix.Major(st.Dev), unix.Minor(st.Dev)}, nil
}

func devicesOf(sys string, files []string) ([]Device, error) {
	var devices []Device
	for _, file := range files {
		number, err := deviceOf(file)
		if err != nil {
			return nil, err
		}
		d, err := wholeDisk(sys, number)
		if err != nil {
			return nil, fmt.Errorf("find the disk under %s: %w", file, err)
		}
		if !slices.Contains(devices, d) {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// wholeDisk is the disk of which a device is a partition, or the device itself: the kernel bounds whole disks only.
func wholeDisk(sys string, d Device) (Device, error) {
	link := filepath.Join(sys, "dev", "block", d.String())
	dir, err := filepath.EvalSymlinks(link)
	if errors.Is(err, fs.ErrNotExist) {
		return Device{}, fmt.Errorf("device %v is no disk", d)
	}
	if err != nil {
		return Device{}, err
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); errors.Is(err, fs.ErrNotExist) {
		return d, nil
	} else if err != nil {
		return Device{}, err
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return Device{}, err
	}
	var whole Device
	if _, err := fmt.Sscanf(string(b), "%d:%d", &whole.Major, &whole.Minor); err != nil {
		return Device{}, fmt.Errorf("device %v: %w", d, err)
	}
	return whole, nil
}
