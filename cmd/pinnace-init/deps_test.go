//go:build linux

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestImports keeps PID 1 small: every package in it is memory of each VM and code that runs before anything else.
func TestImports(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		switch {
		case strings.HasPrefix(pkg, "golang.org/x/sys/"):
		case pkg == "github.com/pinnacehq/pinnace/cmd/pinnace-init":
		case pkg == "github.com/pinnacehq/pinnace/internal/guest":
		case pkg == "github.com/pinnacehq/pinnace/internal/guest/pid1":
		default:
			t.Errorf("pinnace-init links %s", pkg)
		}
	}
	out, err = exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		switch pkg {
		case "net", "log/slog", "net/http", "os/exec", "crypto/tls":
			t.Errorf("pinnace-init links %s, which is large and not needed", pkg)
		}
	}
}

// TestSize builds the program as the release does.
func TestSize(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	const limit = 4 << 20
	out := t.TempDir() + "/pinnace-init"
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > limit {
		t.Errorf("%d bytes, at most %d are allowed", info.Size(), limit)
	}
}
