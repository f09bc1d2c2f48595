package failpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// A Point is one named place. Make it in a package variable, so that Names knows all that are linked in.
type Point struct{ name string }

// all are the points of this process, in the order in which their packages were initialised.
var all []*Point

type arming struct {
	point *Point
	left  atomic.Int64 // hits until the process dies
}

var armed atomic.Pointer[arming]

// New names a place: "package.operation.moment". A name that is taken is a mistake in the program.
func New(name string) *Point {
	p := &Point{name: name}
	if slices.Contains(Names(), name) {
		panic("failpoint: two points are named " + name)
	}
	all = append(all, p)
	return p
}

// Names are those of all points of the process.
func Names() []string {
	names := make([]string, len(all))
	for i, p := range all {
		names[i] = p.name
	}
	return names
}

// Arm makes the process die at a point: "name" at its first hit, "name=3" at its third. Call it before
// anything runs that has points.
func Arm(spec string) error {
	name, count, _ := strings.Cut(spec, "=")
	i := slices.Index(Names(), name)
	if i < 0 {
		return fmt.Errorf("there is no failpoint %q", name)
	}
	n := int64(1)
	if count != "" {
		v, err := strconv.ParseInt(count, 10, 64)
		if err != nil || v < 1 {
			return errors.New("a failpoint's count is a number from 1 on, as in " + name + "=3")
		}
		n = v
	}
	a := &arming{point: all[i]}
	a.left.Store(n)
	armed.Store(a)
	return nil
}

// Hit is the place.
func (p *Point) Hit() {
	if a := armed.Load(); a != nil && a.point == p && a.left.Add(-1) == 0 {
		// Nothing of this process may run on, which no panic and no exit would see to.
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
