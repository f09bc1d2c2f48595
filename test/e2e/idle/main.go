// Command idle is the PID 1 that does nothing: it resets the machine as soon as it runs. What a machine takes to boot
// with it is what the kernel and its emulator take, and the measure of everything that init does.
package main

import "golang.org/x/sys/unix"

func main() {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // there is nobody to tell
	select {}
}
