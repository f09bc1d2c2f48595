package proxy

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls that move bytes do not wait, and move a bounded number. Go's scheduler is not told of them: it would
// take the processor from a goroutine that is in the kernel for longer than 20 µs, which moving 256 KiB is, and
// waking another thread for that costs more than it brings.

// rawIO is read or write on a socket that does not block.
func rawIO(call, fd uintptr, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))) //nolint:gosec // b lives until after the call
	return result(n, errno)
}

// rawSplice moves up to n bytes between a socket and a pipe, neither of which blocks.
func rawSplice(from, to, n int) (int, error) {
	moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return result(moved, errno)
}

func result(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
