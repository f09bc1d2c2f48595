// Package initbin holds the guest's init, and the holder of monitors, inside the pinnace binary. It does nothing else.
package initbin

import (
	"embed"
	"errors"
)

//go:embed all:files
var files embed.FS

// ErrNotBuilt means that the binary was built without the guest's init.
var ErrNotBuilt = errors.New("this binary was built without the guest's init; build it with: make build")

// Init is the static executable that becomes process 1 of every guest.
func Init() ([]byte, error) {
	b, err := files.ReadFile("files/pinnace-init")
	if err != nil {
		return nil, ErrNotBuilt
	}
	return b, nil
}

// Holder is the static executable that stands between the agent and each monitor. A binary that was built without one
// can be a holder itself, a larger one.
func Holder() ([]byte, bool) {
	b, err := files.ReadFile("files/pinnace-holder")
	return b, err == nil
}
