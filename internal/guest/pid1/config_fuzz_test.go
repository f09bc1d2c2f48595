//go:build linux

package pid1

import (
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// FuzzConfig gives whatever a host may send as a configuration to all that reads a part of it before the kernel does.
// None of it may panic, and what comes out keeps to its own rules.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"nonce":"00112233445566778899aabbccddeeff","hostname":"web-1","disks":[{"role":"rootfs-meta","serial":"meta","order":0}],` +
		`"layer_slots":[{"disk":0,"partition":1}],"network":{"mac":"52:54:00:12:34:56","addresses":["10.100.0.2/16","fd00::2/64"],"gateway4":"10.100.0.1",` +
		`"dns":["10.100.0.1"],"search":["internal"],"hosts":[{"address":"10.0.0.1","names":["db"]}]},"process":{"entrypoint":["/bin/sh"],"env":["A=1","=","HOME="],` +
		`"user":"web:media","stop_signal":"SIGRTMIN+3"},"limits":{"pids":-1,"nofile":18446744073709551615}}`))
	f.Add([]byte(`{"disks":[{"order":-1},{"order":1000000}],"layer_slots":[{"disk":-1},{"disk":9,"partition":-3}],"network":{"addresses":["","::/0","0.0.0.0/0"]}}`))
	f.Add([]byte(`{"process":{"stop_signal":"SIGRTMAX+-99999999999999999999","user":"::::","env":["\u0000=\u0000"]},"memory_reserve_bytes":-9223372036854775808}`))
	devices := []blockDevice{{"vda", "meta"}, {"vdb", "123456"}, {"vdc", ""}}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := guest.Decode(guest.TypeConfig, body)
		if err != nil {
			return
		}
		c := m.(guest.Config)
		if c.Network != nil {
			plan, err := planNetwork(*c.Network)
			if err == nil {
				for _, a := range plan.addresses {
					if a.Addr().Is4() && a.Bits() < 31 {
						_ = lastAddress(a)
					}
				}
			}
		}
		for name := range etcFiles(c.Hostname, c.Network) {
			if strings.Contains(name, "/") {
				t.Errorf("a file named %q", name)
			}
		}
		if nodes, err := matchDisks(c.Disks, devices); err == nil {
			if options, err := layerOptions(c.LayerSlots, nodes); err == nil && strings.Count(options, "device=") != len(c.LayerSlots) {
				t.Errorf("%d layers, and the options %q", len(c.LayerSlots), options)
			}
		}
		env := environment(c.Process.Env, c.Hostname, "/")
		if lookEnv(env, "PATH") == "" && !slices.ContainsFunc(c.Process.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
			t.Errorf("no PATH in %q", env)
		}
		if sig := stopSignal("", c.Process.StopSignal); sig < 1 || sig > sigRTMax {
			t.Errorf("stop signal %d from %q", sig, c.Process.StopSignal)
		}
		if memoryMax(128<<20, 40<<20, c.MemoryReserve) < minWorkloadMemory || pidsMax(128<<20, c.Limits.PIDs) < 1 {
			t.Error("limits that nothing runs under")
		}
		if u, err := resolveUser(c.Process.User, strings.NewReader(testPasswd), strings.NewReader(testGroup)); err == nil && u.home == "" {
			t.Errorf("user %+v", u)
		}
	})
}
