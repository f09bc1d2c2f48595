package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// coldCheck is what checking a manifest of a thousand lines may take, from the start of the process to its end.
const coldCheck = 30 * time.Millisecond

// BenchmarkCheckCold runs the binary that PINNACE_BIN names. It fails when the median is over the gate.
func BenchmarkCheckCold(b *testing.B) {
	binary := os.Getenv("PINNACE_BIN")
	if binary == "" {
		b.Skip("needs PINNACE_BIN: the built binary")
	}
	src := thousandLines()
	if m, problems := manifest.Parse(src); m == nil {
		b.Fatal(problems.Err())
	}
	file := filepath.Join(b.TempDir(), "pinnace.toml")
	if err := os.WriteFile(file, src, 0o600); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if out, err := exec.CommandContext(b.Context(), binary, "check", file).CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	median := took[len(took)/2]
	b.ReportMetric(float64(median.Microseconds())/1000, "ms/median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms/p99")
	if median > coldCheck && len(took) > 20 {
		b.Errorf("the median is %s; the gate is %s", median, coldCheck)
	}
}

// thousandLines gives a manifest of a thousand lines that use what there is.
func thousandLines() []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`schema = "v1"`)
	line(`name   = "big"`)
	line(`vars   = [`)
	for i := range 200 {
		line(`  "VARIABLE_%03d",`, i)
	}
	line(`]`)
	line(`[env]`)
	for i := range 250 {
		line(`NAME_%03d = "value %d"`, i, i)
	}
	line(`[resources]`)
	line(`memory = "256MiB"`)
	for i := range 32 {
		line("\n[ports.p%d]\nport        = %d\nexpose      = \"public\"\nedge        = \"raw\"\npublic_port = %d", i, 8000+i, 9000+i)
	}
	for i := range 16 {
		line("\n[secrets.s%d]\npath    = \"/run/secrets/s%d\"\nformat  = \"json\"\nmode    = \"0440\"\nrequire = [\"A\", \"B\"]", i, i)
	}
	for i := range 8 {
		line("\n[volumes.v%d]\npath = \"/data/v%d\"\nsize = \"%dGiB\"", i, i, i+1)
	}
	line(`[health.ready]`)
	line(`type = "exec"`)
	line(`command = [`)
	for bytes.Count(b.Bytes(), []byte("\n")) < 999 {
		line(`  "%s",`, strings.Repeat("x", 10))
	}
	line(`]`)
	return b.Bytes()
}
