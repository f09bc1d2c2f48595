//go:build linux

package pid1

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// maxKernelRecords bounds how much of the kernel's log is read, which is a ring of at most some thousand records.
const maxKernelRecords = 50_000

// oomVictim is the process that the OOM killer chose last. That the killer was at work is proven by counters of the kernel
// (see cgroup.oomKills); the kernel's log only gives the name, and may not have it any more, so that nil is an answer
// too. What others than the kernel have written to its log has another facility, and counts for nothing.
func (b *Boot) oomVictim() *guest.Victim {
	// In the kernel's own /dev, which the workload doesn't see: it can't put anything in the device's place.
	fd, err := unix.Openat(b.devices, "kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer closeFD(fd)
	var found victims
	found.read(fd)
	return found.last()
}

// victims are what the kernel's log says of those whom the OOM killer chose.
type victims struct {
	chosen *guest.Victim // by the last line that tells of a choice
	killed *guest.Victim // by the first line that tells of a kill
}

// last is the choice, or else the kill: where there are too many in a short time, the kernel does not tell of choices.
func (v *victims) last() *guest.Victim {
	if v.chosen != nil {
		return v.chosen
	}
	return v.killed
}

// read reads all records that there are.
func (v *victims) read(fd int) {
	const kmsgMajor, kmsgMinor = 1, 11
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(kmsgMajor, kmsgMinor) {
		return
	}
	buf := make([]byte, 8<<10) // no record is longer
	for range maxKernelRecords {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) {
			continue // records were overwritten meanwhile
		}
		if err != nil || n == 0 {
			return // EAGAIN: that was all
		}
		v.note(string(buf[:n]))
	}
}

// note takes what a record says, which is "priority,number,time,flags;text" with more lines behind it.
func (v *victims) note(record string) {
	head, text, ok := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	n, err := strconv.ParseUint(priority, 10, 32)
	if !ok || err != nil || n>>3 != 0 {
		return // of a facility that is not the kernel's
	}
	text, _, _ = strings.Cut(text, "\n")
	if rest, ok := strings.CutPrefix(text, "oom-kill:"); ok {
		// A process may have named itself like what follows its name.
		_, rest, _ = strings.Cut(rest, ",task=")
		name, numbers, ok := cutLast(rest, ",pid=")
		pid, _, _ := strings.Cut(numbers, ",")
		if ok {
			v.chosen = victim(pid, name)
		}
		return
	}
	if _, rest, ok := strings.Cut(text, "Killed process "); ok && v.killed == nil {
		pid, rest, _ := strings.Cut(rest, " (")
		if name, _, ok := cutLast(rest, ") total-vm:"); ok {
			v.killed = victim(pid, name)
		}
	}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func victim(pid, name string) *guest.Victim {
	n, err := strconv.Atoi(pid)
	if err != nil || n <= 0 {
		return nil
	}
	return &guest.Victim{PID: n, Name: name}
}
