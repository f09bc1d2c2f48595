package main

import (
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/sandbox"
)

// confined does not return in a process that this binary started to run a part of itself without privileges.
// It comes before everything else: arguments and environment of such a process mean nothing to the rest.
func confined() {
	sandbox.Main(map[string]sandbox.Part{image.ConfinedPart: image.Confined})
}
