//go:build linux && (amd64 || arm64)

package pid1

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigCancel is the one signal that Go leaves at its default, which ends the process: C libraries cancel threads by it.
// The kernel spares the first process of a machine such signals, but not when its main thread has them blocked, as Go
// does for moments, and another thread has not: then PID 1 is gone, and the kernel with it.
const sigCancel = 32

// Addresses of what is in sigtake_*.s.
var sigNothingAddr, sigReturnAddr uintptr

// Flags of sigaction(2) that x/sys does not have.
const (
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
	saRestorer = 0x04000000
)

// takeCancel has the signal do nothing. It is handled rather than ignored because what is ignored stays so in every
// program that PID 1 starts.
func takeCancel() error {
	action := struct {
		handler  uintptr
		flags    uint64
		restorer uintptr
		mask     uint64
	}{sigNothingAddr, saOnStack | saRestart | saRestorer, sigReturnAddr, 0}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sigCancel, uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0) //nolint:gosec // the kernel's struct
	if errno != 0 {
		return fmt.Errorf("handle signal %d: %w", sigCancel, errno)
	}
	return nil
}
