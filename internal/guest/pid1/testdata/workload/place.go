package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// place prints what the process finds around it, and how far it gets with what it should leave alone, as one line of
// JSON: for everything that is tried, the error or "done".
func place() {
	f := map[string]any{"fds": inherited()}
	done := func(err error) string {
		if err == nil {
			return "done"
		}
		return err.Error()
	}
	f["dev"] = strings.Join(names("/dev"), " ")
	for _, link := range []string{"/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx"} {
		target, err := os.Readlink(link)
		if err != nil {
			target = err.Error()
		}
		f["link "+link] = target
	}
	for _, device := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx"} {
		var st syscall.Stat_t
		if err := syscall.Stat(device, &st); err != nil {
			f["node "+device] = err.Error()
			continue
		}
		f["node "+device] = fmt.Sprintf("%d:%d %04o", st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&^0xff, st.Mode&0o7777)
	}
	_, err := os.ReadFile("/dev/tty")
	f["read /dev/tty"] = done(err)
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	f["open /dev/ptmx"] = done(err)
	if err == nil {
		pty.Close()
	}
	f["write /dev/null"] = done(os.WriteFile("/dev/null", []byte("x"), 0))
	f["write /dev/full"] = done(os.WriteFile("/dev/full", []byte("x"), 0))

	for _, dir := range []string{"/dev", "/dev/shm", "/tmp", "/"} {
		node := filepath.Join(dir, "disk")
		err := syscall.Mknod(node, syscall.S_IFBLK|0o666, 254<<8)
		if err == nil {
			_, err = os.Open(node)
			os.Remove(node)
		}
		f["use a disk by "+dir] = done(err)
	}
	for _, file := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/vm/panic_on_oom", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/workload/memory.max", "/sys/fs/cgroup/init/cgroup.procs", "/sys/kernel/mm/transparent_hugepage/enabled",
	} {
		f["write "+file] = done(os.WriteFile(file, []byte("0"), 0))
	}
	for _, file := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"} {
		b, err := os.ReadFile(file)
		f["read "+file] = fmt.Sprintf("%d bytes %s", len(b), done(err))
	}
	for _, dir := range []string{"/proc/acpi", "/sys/firmware"} {
		f["list "+dir] = fmt.Sprint(len(names(dir)))
	}
	_, err = os.ReadFile("/proc/1/environ")
	f["read /proc/1/environ"] = done(err)
	_, err = os.Readlink("/proc/1/root")
	f["read /proc/1/root"] = done(err)
	f["mount"] = done(syscall.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	f["set hostname"] = done(syscall.Sethostname([]byte("mine")))
	f["set clock"] = done(syscall.Settimeofday(&syscall.Timeval{Sec: 1e9}))
	f["load module"] = done(func() error {
		if _, _, errno := syscall.Syscall(syscall.SYS_INIT_MODULE, 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}())
	f["reboot"] = done(syscall.Reboot(syscall.LINUX_REBOOT_CMD_CAD_OFF))
	raw, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
	f["raw socket"] = done(err)
	syscall.Close(raw)
	port, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Bind(port, &syscall.SockaddrInet4{Port: 80})
	}
	f["bind port 80"] = done(err)
	ping, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, syscall.IPPROTO_ICMP)
	f["ping socket"] = done(err)
	syscall.Close(ping)
	f["chown"] = done(func() error {
		if err := os.WriteFile("/tmp/mine", nil, 0o600); err != nil {
			return err
		}
		return os.Chown("/tmp/mine", 1000, 1000)
	}())

	own, _ := os.ReadFile("/proc/self/cgroup")
	dir := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(strings.TrimSpace(string(own)), "0::"))
	for _, file := range []string{"memory.max", "memory.oom.group", "pids.max", "cgroup.procs"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			b = []byte(err.Error())
		}
		f["cgroup "+file] = strings.TrimSpace(string(b))
	}
	init, _ := os.ReadFile("/proc/1/cgroup")
	f["cgroup of init"] = strings.TrimSpace(string(init))
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if m := strings.Fields(line); len(m) > 3 {
			f["mount "+m[1]] = m[2] + " " + m[3]
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for line := range strings.Lines(string(limits)) {
		if len(line) > 26 && strings.HasPrefix(line, "Max ") {
			f["limit "+strings.TrimSpace(line[4:26])] = strings.Join(strings.Fields(line[26:])[:2], " ")
		}
	}
	for _, name := range []string{"0", "1", "2"} {
		f["fd "+name], _ = os.Readlink("/proc/self/fd/" + name)
	}
	sid, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, 0, 0, 0)
	f["leads its session"] = int(sid) == os.Getpid() && syscall.Getpgrp() == os.Getpid()
	for name, path := range map[string]string{"/etc/hosts": "/fixed/hosts", "/etc/hostname": "/etc/hostname", "/etc/resolv.conf": "/run/systemd/resolve/stub-resolv.conf"} {
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte(err.Error())
		}
		f["place of "+name] = string(b)
		// A package's script, or an administrator, edits it in place.
		f["append to "+name] = done(func() error {
			file, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = file.WriteString("# more\n")
			return err
		}())
	}
	b, _ := json.Marshal(f)
	fmt.Println(string(b))
}

// inherited are the numbers of the open files, less those that Go's own runtime has opened.
func inherited() string {
	var all []string
	for _, n := range names("/proc/self/fd") {
		target, err := os.Readlink("/proc/self/fd/" + n)
		if err == nil && !strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "/sys/") {
			all = append(all, n)
		}
	}
	return strings.Join(all, " ")
}

func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	sort.Strings(all)
	return all
}
