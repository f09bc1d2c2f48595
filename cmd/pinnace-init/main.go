//go:build linux

// Command pinnace-init is PID 1 of every microVM. Read main from top to bottom as the log of a boot; the steps are in
// internal/guest/pid1.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/pinnacehq/pinnace/internal/guest/pid1"
)

// version is set by the linker.
var version = "dev"

// The VM's memory belongs to the workload: collect garbage early, and often near the limit.
const (
	gcPercent   = 40
	memoryLimit = 10 << 20
	// Each thread that runs Go code keeps memory of its own, and PID 1 has no work for more.
	threads = 2
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "pinnace-init runs as the first process of a Pinnace microVM, and does nothing elsewhere")
		os.Exit(2)
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	runtime.GOMAXPROCS(min(threads, runtime.NumCPU()))

	b := pid1.New(version)
	defer b.Reboot()
	b.Step("signals", b.TakeCharge)
	b.Step("mounts", b.MountKernelFilesystems)
	b.Step("modules", b.LoadEarlyModules)
	b.Step("channels", b.OpenChannels)
	b.Step("hello", b.SayHello)
	b.Step("late-modules", b.LoadLateModules)
	b.Step("config", b.AwaitConfig)
	b.Step("kernel", b.SetKernelKnobs)
	b.Step("disks", b.FindDisks)
	b.Step("rootfs", b.MountRoot)
	b.Step("switch-root", b.SwitchRoot)
	b.Step("dev", b.MountDev)
	b.Step("cgroups", b.SetUpCgroups)
	b.Step("tmp", b.MakeScratchDirs)
	b.Step("network", b.SetUpNetwork)
	b.Step("etc", b.BindEtc)
	b.Step("clock", b.SetClock)
	b.Step("user", b.ResolveUser)
	b.Step("volumes", b.MountVolumes)
	b.Step("secrets", b.PlaceSecrets)
	b.Step("confine", b.Confine)
	b.Step("exec", b.StartWorkload)
	b.Supervise()
}
