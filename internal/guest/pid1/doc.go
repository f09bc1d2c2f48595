//go:build linux

// Package pid1 is everything that the first process of a microVM does: it turns a bare kernel into what a container
// image expects, runs the workload, carries its output and its end to the host, and leaves clean disks behind.
//
// Boot holds the steps; cmd/pinnace-init puts them in order, and reads like a boot log. A step that fails becomes a
// Failed message with the step's name. Nothing here may end the process: PID 1 that exits or panics is a kernel panic,
// so every goroutine recovers, and the way out is always Boot.Reboot.
//
// The package does not decide what to run: image and manifest are merged by the host. It knows no driver either; it
// finds two virtio-serial ports by their names.
package pid1
