package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// onOwnThread runs f on an operating system thread that nothing else uses, before or after: f may move the
// thread into namespaces that it cannot leave. It returns at once.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			f() // the goroutine ends locked, which ends the thread
			return
		}
		// This is the main thread, which the runtime keeps for ever and through which /proc/self shows the
		// whole process. While it is locked here, another goroutine cannot be on it.
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			f()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
}

// enterNetns moves the calling thread into the network namespace at path.
func enterNetns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	if err != nil {
		err = fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return errors.Join(err, unix.Close(fd))
}

// canLimit tells whether the caller may set limits of another user's process, which root in a container
// often may not.
func canLimit() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// limitResources bounds a holder before it starts its monitor, which inherits the bounds.
func limitResources(pid int) error {
	limits := map[int]uint64{
		unix.RLIMIT_CORE:    vm.CoreLimit,
		unix.RLIMIT_NOFILE:  1024,
		unix.RLIMIT_MEMLOCK: 0,
	}
	for resource, limit := range limits {
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil {
			return fmt.Errorf("limit the monitor's resources: %w", err)
		}
	}
	return nil
}
