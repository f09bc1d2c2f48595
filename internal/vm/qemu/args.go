package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// portName is the name under which the guest finds a channel's virtio-serial port.
func portName(ch vm.Channel) string { return "pinnace." + string(ch) }

// arguments returns QEMU's command line without the program's name. It is a function of its arguments
// only. Nothing that a user of Pinnace wrote is in it: disk ids are checked, everything else that varies is a
// number of ours.
func arguments(o Options, h *host, s vm.Spec, accel Accel, f *files) []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		// The guest ends by resetting; this turns the reset into the end of the process.
		"-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", "microvm,isa-serial=on,auto-kernel-cmdline=off,mem-merge=off,dump-guest-core=off",
		"-accel", acceleration(o, accel),
		"-cpu", o.CPU,
		"-m", strconv.Itoa(s.MemoryMiB) + "M",
		"-smp", strconv.Itoa(s.VCPUs),
		"-kernel", f.kernelPath, "-initrd", f.initramfsPath,
		"-append", commandLine(accel, h),
		// Opened by the caller; "append" keeps QEMU from truncating what is a pipe.
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", f.console, f.console),
		"-chardev", fmt.Sprintf("file,id=console,path=/dev/fdset/%d,append=on", f.console),
		"-serial", "chardev:console",
		"-global", "virtio-mmio.force-legacy=false",
		"-device", fmt.Sprintf("virtio-serial-device,max_ports=%d", len(vm.Channels())+1),
	}
	for i, ch := range vm.Channels() {
		a = append(a,
			"-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", ch, f.channels[i]),
			"-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s,nr=%d", ch, portName(ch), i+1))
	}
	for i, d := range s.Disks {
		a = append(a,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", f.disks[i], f.disks[i]),
			"-blockdev", blockdev(i, d, f.disks[i]),
			// The default would stop the machine when the host's disk is full, and nothing would say so. The guest
			// gets the error, as from any other disk.
			"-device", fmt.Sprintf("virtio-blk-device,drive=disk%d,serial=%s,werror=report,rerror=report", i, d.ID))
	}
	if s.NIC != nil {
		a = append(a,
			"-netdev", fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", f.tap),
			"-device", "virtio-net-device,netdev=net0,mac="+s.NIC.MAC)
	}
	return a
}

func acceleration(o Options, accel Accel) string {
	if accel == TCG {
		return fmt.Sprintf("tcg,tb-size=%d", o.TranslationCacheMiB)
	}
	return string(accel)
}

func blockdev(i int, d vm.Disk, fd int) string {
	readOnly, discard, noFlush := "on", "ignore", "off"
	if !d.ReadOnly {
		readOnly, discard = "off", "unmap"
		if !d.Durable {
			noFlush = "on"
		}
	}
	return fmt.Sprintf("driver=raw,node-name=disk%d,read-only=%s,discard=%s,cache.direct=off,cache.no-flush=%s,"+
		"file.driver=file,file.filename=/dev/fdset/%d,file.aio=threads", i, readOnly, discard, noFlush, fd)
}

// commandLine is the guest kernel's.
func commandLine(accel Accel, h *host) string {
	words := []string{
		// Quiet still shows errors and panics, which is what the console is for.
		"console=ttyS0", "quiet",
		// A panic or reboot ends in a triple fault, which ends the machine, at once.
		"reboot=t", "panic=-1",
		"random.trust_cpu=on", "cryptomgr.notests",
	}
	if accel == TCG {
		words = append(words, emulationWords(h)...)
	}
	return strings.Join(words, " ")
}

// emulationWords are what a kernel needs to know about an emulated processor.
func emulationWords(h *host) []string {
	words := []string{
		"tsc=reliable", "no_timer_check",
		// Walks of five-level tables, workarounds for real processors' faults and patched-out lock prefixes
		// only cost time here.
		"no5lvl", "mitigations=off", "noreplace-smp",
	}
	if h.tscKHz > 0 {
		// On a busy host the kernel's own calibration of the time stamp counter hangs the boot; QEMU passes
		// the host's counter through, so its rate is known.
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", h.tscKHz))
	}
	if major(h.caps.Version) < 8 {
		// QEMU before 8.0 forgets to store the lazily computed flags before cmpxchg16b: when an interrupt came
		// shortly before, the flags register is garbage afterwards, and one boot in ten ends in a panic. The
		// kernel's allocator is the one heavy user of the instruction; programs still see that it exists.
		words = append(words, "clearcpuid=cx16")
	}
	return words
}

// major is the first number of a version, or 0.
func major(version string) int {
	first, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	return n
}
