package vmtest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// A SuiteGuest does what the program of GuestInit does, for machines that are played.
type SuiteGuest struct {
	Control, Logs io.ReadWriter
	Console       io.Writer
	Disks         []SuiteDisk // in the order of their devices
}

// A SuiteDisk is a disk as its guest sees it, and the file behind it.
type SuiteDisk struct {
	Serial   string
	Path     string
	ReadOnly bool
}

// Play follows the suite's commands until one ends the machine or the channel ends.
func (g SuiteGuest) Play() End {
	fmt.Fprintln(g.Control, "hello")
	for in := bufio.NewScanner(g.Control); in.Scan(); {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "echo":
			fmt.Fprintln(g.Control, arg)
		case "logs":
			fmt.Fprintln(g.Logs, arg)
		case "console":
			fmt.Fprintln(g.Console, arg)
			fmt.Fprintln(g.Control, "ok")
		case "disks":
			fmt.Fprintln(g.Control, g.listDisks())
		case "sync":
			fmt.Fprintln(g.Control, g.writeDisk(arg))
		case "eat":
			Eat()
			fmt.Fprintln(g.Control, "ok")
		case "reboot":
			return End{}
		case "panic":
			return End{Panic: "Attempted to kill init!"}
		}
	}
	return End{}
}

// eaten holds what Eat has taken.
var eaten [][]byte

// Eat takes 48 MiB of memory, which is there in every machine of the suite, and keeps it.
func Eat() {
	const piece, pieces = 1 << 20, 48
	for range pieces {
		b := make([]byte, piece)
		for i := 0; i < len(b); i += 512 {
			b[i] = 1
		}
		eaten = append(eaten, b)
	}
}

func (g SuiteGuest) listDisks() string {
	out := make([]string, len(g.Disks))
	for i, d := range g.Disks {
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		info, err := os.Stat(d.Path)
		if err != nil {
			return err.Error()
		}
		out[i] = fmt.Sprintf("%s %d %s", d.Serial, info.Size()/512, mode)
	}
	return strings.Join(out, ",")
}

// writeDisk writes a block to the disk with that serial or device name.
func (g SuiteGuest) writeDisk(name string) string {
	for i, d := range g.Disks {
		if d.Serial != name && DeviceName(i) != name {
			continue
		}
		f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
		if err != nil {
			return err.Error()
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(strings.Repeat("pinnace!", 64)), 0); err != nil {
			return err.Error()
		}
		return "ok"
	}
	return "no disk " + name
}

// DeviceName is the name that a guest gives its disk of that number, of the first 26.
func DeviceName(n int) string { return "vd" + string(rune('a'+n)) }
