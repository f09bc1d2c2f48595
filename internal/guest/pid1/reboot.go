//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// teardownTimeout bounds everything between the last word to the host and the reset.
	teardownTimeout = 5 * time.Second
	lastBreath      = time.Second // for processes to vanish after SIGKILL
)

// Reboot leaves clean disks behind and resets the VM, which the VMM takes as its end. It does not return.
//
// It is a reboot and not a power-off: there is a reset on every machine type, and no power switch on some.
func (b *Boot) Reboot() {
	done := make(chan struct{})
	safely("teardown", func() {
		defer close(done)
		b.tearDown()
	})
	late := time.NewTimer(teardownTimeout)
	select {
	case <-done:
	case <-late.C:
		logf(logError, "the disks are not clean after %v", teardownTimeout)
	}
	for {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			logf(logError, "reboot: %v", err)
		}
		time.Sleep(time.Second)
	}
}

func (b *Boot) tearDown() {
	_ = unix.Kill(-1, unix.SIGKILL) // ESRCH: nobody is left
	if b.workload != nil {
		if err := b.workload.waitEmpty(lastBreath); err != nil {
			logf(logError, "%v", err)
		}
	}
	b.freezer.thawAll()
	unix.Sync()
	for _, target := range unmountOrder() {
		err := unix.Unmount(target, 0)
		if errors.Is(err, unix.EBUSY) {
			// Somebody who can't be killed has something open there. Read-only is as clean.
			err = unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil {
			logf(logInfo, "unmount %s: %v", target, err)
		}
	}
	// Root and the file system under it can't be unmounted while PID 1 lives on them: read-only is as clean.
	if b.upper >= 0 {
		for _, target := range []string{"/", fmt.Sprintf("/proc/self/fd/%d", b.upper)} {
			if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				logf(logError, "make %s read-only: %v", target, err)
			}
		}
	}
	unix.Sync()
}

// unmountOrder returns what is mounted under the root, the last first, without what the teardown itself needs.
func unmountOrder() []string {
	src, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	targets := mountTargets(string(src))
	slices.Reverse(targets)
	return targets
}

// mountTargets reads the mount points of a mounts file.
func mountTargets(mounts string) []string {
	var targets []string
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch target := unescapeMount(f[1]); target {
		case "/", "/proc", "/dev", "/sys":
		default:
			targets = append(targets, target)
		}
	}
	return targets
}

// unescapeMount undoes the kernel's octal escapes of blanks and the like.
func unescapeMount(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			var n int
			if _, err := fmt.Sscanf(s[i+1:i+4], "%03o", &n); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
