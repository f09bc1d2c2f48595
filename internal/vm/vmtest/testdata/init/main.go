// Init is PID 1 of the conformance suite's guest. It says "hello" on the control channel and then does what
// it is told there, a line at a time:
//
//	echo TEXT    answers TEXT
//	logs TEXT    writes TEXT to the log channel
//	flood N SIZE writes N lines of 100 bytes to the log channel, SIZE bytes or one line more at a time, answers "ok"
//	disks        answers "SERIAL SECTORS ro|rw" for every disk, in the order of devices, separated by ","
//	macs         answers the addresses of the network devices but loopback, separated by ","
//	sync NAME    writes a block to the disk of that serial or device name and flushes it, answers "ok"
//	console TEXT writes TEXT to the console, answers "ok"
//	eat          takes 48 MiB of memory and keeps it, answers "ok"
//	reboot       resets the machine
//	panic        makes the kernel panic
//
// It is built by the tests, and opens the channels as pinnace-init does.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/pid1"
)

func main() {
	err := run()
	fmt.Println("test init:", err)
	// PID 1 must not end; without a channel there is nobody to tell but the console.
	for {
		time.Sleep(time.Hour)
	}
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	if err := loadModules("/lib/modules"); err != nil {
		return err
	}
	control, err := pid1.OpenChannel(guest.ControlChannel)
	if err != nil {
		return err
	}
	logs, err := pid1.OpenChannel(guest.LogsChannel)
	if err != nil {
		return err
	}
	fmt.Fprintln(control, "hello")
	for in := bufio.NewScanner(control); in.Scan(); {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		answer, err := do(verb, arg, logs)
		if err != nil {
			answer = "error: " + err.Error()
		}
		if answer != "" {
			fmt.Fprintln(control, answer)
		}
	}
	return nil
}

func do(verb, arg string, logs io.Writer) (string, error) {
	switch verb {
	case "echo":
		return arg, nil
	case "logs":
		_, err := fmt.Fprintln(logs, arg)
		return "", err
	case "flood":
		return "ok", flood(arg, logs)
	case "disks":
		return disks()
	case "macs":
		return macs()
	case "sync":
		return "ok", syncDisk(arg)
	case "console":
		fmt.Println(arg)
		return "ok", nil
	case "eat":
		eat()
		return "ok", nil
	case "reboot":
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		os.Exit(7) // "Attempted to kill init!"
	}
	return "", fmt.Errorf("unknown command %q", verb)
}

func flood(arg string, logs io.Writer) error {
	var lines, size int
	if _, err := fmt.Sscan(arg, &lines, &size); err != nil {
		return err
	}
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	batch := bytes.Repeat(line, (size+len(line)-1)/len(line))
	for left := lines * len(line); left > 0; left -= len(batch) {
		if _, err := logs.Write(batch[:min(left, len(batch))]); err != nil {
			return err
		}
	}
	return nil
}

// eaten holds what eat has taken.
var eaten [][]byte

func eat() {
	const piece, pieces = 1 << 20, 48
	for range pieces {
		b := make([]byte, piece)
		for i := 0; i < len(b); i += 512 {
			b[i] = 1
		}
		eaten = append(eaten, b)
	}
}

func loadModules(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "load"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		_, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", name, err)
		}
		f.Close()
	}
	return nil
}

func disks() (string, error) {
	dirs, err := filepath.Glob("/sys/block/vd*")
	var out []string
	for _, dir := range dirs {
		mode := "rw"
		if read(dir, "ro") == "1" {
			mode = "ro"
		}
		out = append(out, read(dir, "serial")+" "+read(dir, "size")+" "+mode)
	}
	return strings.Join(out, ","), err
}

func macs() (string, error) {
	dirs, err := filepath.Glob("/sys/class/net/*")
	var out []string
	for _, dir := range dirs {
		if filepath.Base(dir) != "lo" {
			out = append(out, read(dir, "address"))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ","), err
}

func syncDisk(name string) error {
	dirs, _ := filepath.Glob("/sys/block/vd*")
	for _, dir := range dirs {
		if read(dir, "serial") != name && filepath.Base(dir) != name {
			continue
		}
		f, err := os.OpenFile("/dev/"+filepath.Base(dir), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(strings.Repeat("pinnace!", 64)), 0); err != nil {
			return err
		}
		return f.Sync()
	}
	return fmt.Errorf("no disk %s", name)
}

func read(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b))
}
