package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/fleet"
)

// TestNewerLog: who starts a server that is too old for its log is told what to do.
func TestNewerLog(t *testing.T) {
	var stderr strings.Builder
	status := exitStatus(&stderr, fmt.Errorf("open event log: decode moon.landed: %w", fleet.ErrNewer))
	if got := stderr.String(); status != exitConflict || !strings.Contains(got, "newer version of the server") || !strings.Contains(got, "hint: start the version that wrote it") {
		t.Errorf("status %d, %q", status, got)
	}
}
