package qemu

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// measureTSC returns the rate of the host's time stamp counter in kHz, or 0 when it can't be told. It takes 20 ms. The
// rate in /proc/cpuinfo would not do: where frequencies scale it is the core's momentary clock, and a guest
// that is told the wrong rate has a clock that runs wrong.
func measureTSC() int64 {
	if b, err := os.ReadFile("/proc/cpuinfo"); err != nil || !strings.Contains(string(b), "constant_tsc") {
		return cpuinfoKHz()
	}
	start := time.Now()
	t0, c0 := sampleTSC(start)
	time.Sleep(20 * time.Millisecond)
	t1, c1 := sampleTSC(start)
	if t1 <= t0 || c1 <= c0 {
		return cpuinfoKHz()
	}
	return int64(float64(c1-c0) / (float64(t1-t0) / float64(time.Millisecond)))
}

// sampleTSC reads clock and counter as close to each other as it gets in some tries: being preempted
// between the two spoils a sample.
func sampleTSC(start time.Time) (at time.Duration, counter uint64) {
	best := time.Hour
	for range 16 {
		before := time.Since(start)
		c := ticks()
		after := time.Since(start)
		if after-before < best {
			best, at, counter = after-before, before+(after-before)/2, c
		}
	}
	return at, counter
}

// cpuinfoKHz returns the first processor's clock according to the kernel, or 0.
func cpuinfoKHz() int64 {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(key) != "cpu MHz" {
			continue
		}
		mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return 0
		}
		return int64(mhz * 1000)
	}
	return 0
}
