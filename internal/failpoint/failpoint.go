// Package failpoint lets a test stop a program, or let it fail, at each step that changes what is on a disk.
//
// There are two kinds. Code that changes files calls Hit just before each step; such steps have no names: a test
// counts them, or looks at the path. A Point is a place between two things that become durable or known, has
// a name, and kills the process as SIGKILL does when Arm has said so. In a program that nobody tests, either is
// one atomic load.
package failpoint

import "sync/atomic"

// A Hook is told of every step and may end the process. The error that it returns becomes the step's own, which
// is then not made.
type Hook func(step, path string) error

var hook atomic.Pointer[Hook]

// Hit announces a step: "create", "sync", "rename" and so on, of the file or directory at path.
func Hit(step, path string) error {
	if h := hook.Load(); h != nil {
		return (*h)(step, path)
	}
	return nil
}

// Set makes h the hook of this process until restore is called. h is called from any goroutine.
func Set(h Hook) (restore func()) {
	old := hook.Swap(&h)
	return func() { hook.Store(old) }
}
