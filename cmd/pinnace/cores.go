package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// noCores keeps the memory of this process out of core dumps, whoever asks for one and wherever the kernel would put it:
// it holds the secrets of workloads. Programs that it starts are not bound by it.
func noCores() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep secrets out of core dumps: %w", err)
	}
	return nil
}
