package vm_test

import (
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm"
)

func TestConsoleKeepsTheEnd(t *testing.T) {
	var c vm.Console
	for i := range 5000 {
		c.Write([]byte(strings.Repeat(string(rune('a'+i%26)), 100)))
	}
	c.Write([]byte("the end"))
	tail := c.Tail()
	if len(tail) != vm.ConsoleLimit || !strings.HasSuffix(tail, "the end") {
		t.Errorf("tail: got %d bytes ending in %q, want %d ending in \"the end\"", len(tail), tail[len(tail)-10:], vm.ConsoleLimit)
	}
	c.Write([]byte(strings.Repeat("x", 10*vm.ConsoleLimit)))
	if tail := c.Tail(); tail != strings.Repeat("x", vm.ConsoleLimit) {
		t.Errorf("after one huge write: got %d bytes", len(tail))
	}
}

func TestConsolePanic(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"none", "[    1.0] reboot: Restarting system\n", ""},
		{
			"init died", "[    0.9] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000700\r\n[ 0.9] CPU: 0\r\n",
			"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000700",
		},
		{"cut off", "Kernel panic - not syncing: VF", "Kernel panic - not syncing: VF"},
		{"escapes are dropped", "Kernel panic - not syncing: \x1b[2Jx\x07\n", "Kernel panic - not syncing: [2Jx"},
		{"last of two", "Kernel panic - not syncing: fake\nKernel panic - not syncing: true\n", "Kernel panic - not syncing: true"},
		{"bounded", "Kernel panic - not syncing" + strings.Repeat("!", 500), "Kernel panic - not syncing" + strings.Repeat("!", 174)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c vm.Console
			for _, b := range []byte(tt.in) { // byte by byte: chunks of a pipe end anywhere
				c.Write([]byte{b})
			}
			if got := c.Panic(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
