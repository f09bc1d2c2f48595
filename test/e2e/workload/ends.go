package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endings are the ways in which a workload can be a burden to what runs it. Each is a sub-command.
var endings = map[string]func() error{
	"ignore":  ignore,
	"zombies": zombies,
	"child":   child,
	"eat":     eat,
	"fill":    fill,
	"bomb":    bomb,
	"abort":   abort,
	"panic":   panicKernel,
	"spew":    spew,
}

// ignore does not stop when it is told to.
func ignore() error {
	signal.Ignore(syscall.SIGTERM)
	fmt.Println("ignoring SIGTERM")
	for {
		time.Sleep(time.Hour)
	}
}

// children is how many zombies starts.
const children = 200

// zombies starts children that it never waits for, each of which leaves a child of its own behind. When all have ended
// it says what is left of them, and goes on until it is stopped.
func zombies() error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	for range children {
		cmd := exec.Command("/proc/self/exe", "child", "2")
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	last := ""
	for tick := time.Tick(100 * time.Millisecond); ; {
		mine, running, orphans, err := census()
		if err != nil {
			return err
		}
		// The last word comes when there is nothing to come any more.
		if now := fmt.Sprintf("%d zombies of mine, %d of init's", mine, orphans); now != last && running == 0 {
			fmt.Println(now)
			last = now
		}
		select {
		case <-stop:
			return nil
		case <-tick:
		}
	}
}

// child starts one less than it is told, waits for none, and ends.
func child() error {
	depth, err := strconv.Atoi(os.Args[2])
	if err != nil || depth <= 1 {
		return err
	}
	return exec.Command("/proc/self/exe", "child", strconv.Itoa(depth-1)).Start() //nolint:gosec // It is itself, with a number.
}

// census counts the processes of this program but this one: zombies that it has to wait for, those that run, and zombies
// that init has to wait for.
func census() (mine, running, orphans int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return 0, 0, 0, err
		}
		self, _, _ := strings.Cut(string(text), " ")
		_, after, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(after)
		switch parent := fields[1]; {
		case parent == "0" || parent == "2" || self == strconv.Itoa(os.Getpid()):
		case fields[0] != "Z":
			running++
		case parent == "1":
			orphans++
		default:
			mine++
		}
	}
	return mine, running, orphans, err
}

// eat takes memory until there is none.
func eat() error {
	var all [][]byte
	for {
		all = append(all, bytes.Repeat([]byte{1}, 1<<20))
		if len(all)%16 == 0 {
			fmt.Println("have eaten", len(all), "MiB")
		}
	}
}

// fill writes to the root until there is no room, and says so.
func fill() error {
	f, err := os.Create("/filler")
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for n := 0; ; n++ {
		if _, err := f.Write(block); err != nil {
			fmt.Printf("%v after %d MiB\n", err, n)
			if errors.Is(err, syscall.ENOSPC) {
				os.Exit(int(syscall.ENOSPC))
			}
			return err
		}
	}
}

// bomb forks without end, and so does every process that comes of it. They share the program and do nothing else, so
// that it is not the memory of a program that ends them.
func bomb() error {
	fmt.Println("forking")
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_FORK, 0, 0, 0)
	}
}

// abort ends by a signal.
func abort() error {
	fmt.Println("killing myself")
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// panicKernel would take the kernel down, and init with it, if it could.
func panicKernel() error {
	fmt.Println("crashing the kernel")
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}
