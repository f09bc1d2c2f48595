package manifest

import (
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"
)

// maxHeap is what reading any text may take.
const maxHeap = 32 << 20

// hostile gives texts that are made to cost time or memory.
func hostile() map[string]string {
	keys := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i, i)
		}
		return b.String()
	}
	fill := func(piece string) string { return strings.Repeat(piece, (MaxSourceSize-10)/len(piece)) }
	return map[string]string{
		"too big":        strings.Repeat("#", MaxSourceSize+1),
		"deep lists":     "a = " + fill("["),
		"deep tables":    "a = " + fill("{a="),
		"closed lists":   "a = " + strings.Repeat("[", MaxSourceSize/2-10) + strings.Repeat("]", MaxSourceSize/2-10),
		"closed tables":  "a = " + strings.Repeat("{a=", MaxSourceSize/5) + "1" + strings.Repeat("}", MaxSourceSize/5),
		"long path":      fill("a.") + "a = 1",
		"unknown keys":   keys("k%d=%d\n", 18000),
		"variables":      "[env]\n" + keys("K%d=\"%d\"\n", 15000),
		"ports":          keys("[ports.p%d]\nport=%d\n", 9000),
		"duplicates":     fill("a=1\n"),
		"headers":        fill("[a]\n"),
		"broken lines":   fill("a=\n"),
		"list":           "command = [" + fill(`"",`)[:MaxSourceSize-40] + "]",
		"numbers":        "status = [" + fill("1,")[:MaxSourceSize-40] + "]",
		"empty tables":   "a = [" + fill("{},")[:MaxSourceSize-40] + "]",
		"set":            "vars = [" + keys(`"A%d_%d",`, 14000) + "]",
		"list of tables": fill("[[a]]\n"),
		"newlines":       fill("\n"),
		"comments":       fill("#\n"),
		"list comments":  "a = [" + fill("#\n") + "]",
		"pair comments":  keys("k%d=%d#\n", 14000),
		"long key":       strings.Repeat("k", MaxSourceSize/2) + "=1\n" + strings.Repeat("a=1\n", MaxSourceSize/10),
		"long string":    `name = "` + fill("x") + `"`,
		"escapes":        `name = "` + fill(`\u0001`) + `"`,
		"controls":       "name = \"" + fill("\x01") + "\"",
		"quotes":         "a = " + fill(`"`),
		"block":          `a = """` + fill("\n"),
		"digits":         "name = " + fill("9"),
		"unit":           `resources.memory = "` + fill("9") + `GiB"`,
		"tables in env":  "[env]\n" + keys("K%d.x=%d\n", 14000),
		"backslashes":    `a = "` + fill(`\\`) + `"`,
	}
}

// TestHostileSources checks that no text takes long or much memory, whatever is done with it.
func TestHostileSources(t *testing.T) {
	for name, src := range hostile() {
		t.Run(name, func(t *testing.T) {
			text := []byte(src)
			for what, do := range map[string]func(){
				"parse": func() {
					m, problems := Parse(text)
					if m != nil || !problems.HasErrors() {
						t.Error("accepted")
					}
					problems.Render(io.Discard, "f", text, RenderOptions{Caret: true})
				},
				"format": func() { Format(text) },
			} {
				start := time.Now()
				peak := peakHeap(do)
				// What is looked for here is what blows up. How far from the gates it is, the benchmarks say:
				// on a busy machine the collector is late and everything takes longer.
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("%s took %s", what, took)
				}
				t.Logf("%s: %d KiB", what, peak>>10)
				if peak > 2*maxHeap {
					t.Errorf("%s took %d KiB", what, peak>>10)
				}
			}
		})
	}
}

// peakHeap gives the most that the heap grew by while do ran, as often as one can look.
func peakHeap(do func()) uint64 {
	const objects = "/memory/classes/heap/objects:bytes"
	sample := []metrics.Sample{{Name: objects}}
	runtime.GC()
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	done, peak := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: objects}}
		var highest uint64
		for {
			metrics.Read(sample)
			highest = max(highest, sample[0].Value.Uint64())
			select {
			case <-done:
				peak <- highest
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	do()
	close(done)
	return max(<-peak, before) - before
}
