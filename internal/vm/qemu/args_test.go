package qemu

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestArguments(t *testing.T) {
	full := vm.Spec{
		ID: "web-1", VCPUs: 2, MemoryMiB: 512, NIC: &vm.NIC{Tap: "pin0", MAC: "02:00:00:00:00:01"},
		Disks: []vm.Disk{
			{ID: "meta", Path: "/x", ReadOnly: true},
			{ID: "scratch", Path: "/y"},
			{ID: "volume", Path: "/z", Durable: true},
		},
	}
	descriptors := &files{
		console: 5, channels: []int{6, 7}, disks: []int{8, 9, 10}, tap: 11,
		kernelPath: jailKernel, initramfsPath: jailInitramfs,
	}
	tests := []struct {
		name    string
		version string
		accel   Accel
		spec    vm.Spec
	}{
		{"kvm", "10.0.3", KVM, full},
		{"tcg", "10.0.3", TCG, full},
		{"tcg-before-8", "7.2.22", TCG, vm.Spec{ID: "m", VCPUs: 1, MemoryMiB: 96}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &host{tscKHz: 2600000, caps: vm.Capabilities{Version: tt.version}}
			o := Options{CPU: DefaultCPU, TranslationCacheMiB: DefaultTranslationCacheMiB}
			got := strings.ReplaceAll(strings.Join(arguments(o, h, tt.spec, tt.accel, descriptors), "\n"), "\n-", "\n\n-") + "\n"
			golden := "testdata/" + tt.name + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestMeasureTSC(t *testing.T) {
	a, b := measureTSC(), measureTSC()
	if a == 0 {
		t.Skip("needs a processor whose time stamp counter has a known rate")
	}
	if diff := a - b; a < 100_000 || a > 10_000_000 || diff < -a/1000 || diff > a/1000 {
		t.Errorf("got %d kHz and %d kHz", a, b)
	}
}
