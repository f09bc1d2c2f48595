// Package holder is the program that stands between whoever starts machines and the monitor of one machine, so that
// the monitor outlives the one who started it and its end is seen by somebody all the same. It starts the monitor as
// its child, keeps the end of what that prints, and writes down how it ended.
//
// There is one holder for each machine, and nobody talks to it once the monitor runs: what it has to say is in its
// result file, and its own end says that the file is complete. So it needs no upgrades and no protocol, and it is
// small: it has one thread of its own and links nothing but system calls. It knows nothing of machines.
package holder

import (
	"errors"
	"strconv"
	"strings"
)

// Name is what a holder is called, by which a program that can be one knows that it is to be one.
const Name = "pinnace-holder"

// The descriptors that a holder gets. Behind them come the others that its Order counts, in the order of its fields.
const (
	// controlFD is a socket. The holder starts the monitor when it reads a byte from it, and ends without when it
	// reads the end: whoever wanted the monitor is gone. Then it writes the monitor's process id, or why there is none.
	controlFD = 3
	// resultFD is the result file.
	resultFD = 4
	firstFD  = 5
)

// An Order tells a holder what to do.
type Order struct {
	// Kept is the number of descriptors that are only kept open, such as locks.
	Kept int
	// Files is the number of descriptors that the monitor has, from 3 on.
	Files int
	// Console, Complaints and Ignored are numbers of pipes to read: the end of what comes through the first is kept,
	// of the second the beginning, and nothing of the third. The monitor's own standard output and error are
	// complaints too.
	Console, Complaints, Ignored int
	// UID and GID are the monitor's identity, or -1 for the holder's.
	UID, GID int
	// Tied lets the kernel end the monitor when the holder ends. It does nothing to a monitor that changes its identity.
	Tied bool
	// Argv is the monitor's, its program file first.
	Argv []string
}

// separator stands before Argv.
const separator = "--"

// Args returns the holder's arguments, its name first.
func (o Order) Args() []string {
	numbers := []int{o.Kept, o.Files, o.Console, o.Complaints, o.Ignored, o.UID, o.GID, 0}
	if o.Tied {
		numbers[len(numbers)-1] = 1
	}
	args := []string{Name}
	for _, n := range numbers {
		args = append(args, strconv.Itoa(n))
	}
	return append(append(args, separator), o.Argv...)
}

func parseOrder(args []string) (Order, error) {
	var o Order
	tied := 0
	fields := []*int{&o.Kept, &o.Files, &o.Console, &o.Complaints, &o.Ignored, &o.UID, &o.GID, &tied}
	if len(args) < len(fields)+3 || args[len(fields)+1] != separator {
		return o, errors.New("it is started by the agent of Pinnace, and does nothing else")
	}
	for i, field := range fields {
		n, err := strconv.Atoi(args[i+1])
		if err != nil {
			return o, err
		}
		*field = n
	}
	o.Tied = tied != 0
	o.Argv = args[len(fields)+2:]
	return o, nil
}

// ResultName is the name of the result file in a machine's directory.
const ResultName = "monitor"

// Bounds of what is kept of a monitor's output.
const (
	ConsoleLimit    = 64 << 10
	ComplaintsLimit = 4 << 10
)

// A Result is what a holder has written down.
type Result struct {
	// PID is the monitor's process id.
	PID int
	// Ended says that the monitor has ended, and that what follows is known.
	Ended bool
	// Code is its exit status, or -1 when a signal ended it.
	Code, Signal int
	// Complaints is the beginning of what it complained about, and Console the end of its console.
	Complaints, Console string
}

// The first line of a result file is "pid N", written as soon as there is one; the second is "exit CODE SIGNAL
// COMPLAINTS CONSOLE" with the last two as numbers of bytes, which follow.
const (
	pidWord  = "pid "
	exitWord = "exit "
)

// ParseResult reads a result file. One that is cut says less: the zero Result when there is no process id in it.
func ParseResult(text string) Result {
	var r Result
	line, rest, ok := strings.Cut(text, "\n")
	number, isPID := strings.CutPrefix(line, pidWord)
	pid, err := strconv.Atoi(number)
	if !ok || !isPID || err != nil || pid <= 1 {
		return r
	}
	r.PID = pid
	line, rest, ok = strings.Cut(rest, "\n")
	numbers, isExit := strings.CutPrefix(line, exitWord)
	words := strings.Fields(numbers)
	if !ok || !isExit || len(words) != 4 {
		return r
	}
	var n [4]int
	for i, word := range words {
		if n[i], err = strconv.Atoi(word); err != nil {
			return r
		}
	}
	if n[2] < 0 || n[2] > ComplaintsLimit || n[3] < 0 || n[3] > ConsoleLimit || len(rest) != n[2]+n[3] {
		return r
	}
	r.Ended, r.Code, r.Signal, r.Complaints, r.Console = true, n[0], n[1], rest[:n[2]], rest[n[2]:]
	return r
}
