//go:build linux

package pid1

import (
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// fakeWorkload is a workload that ends on the signals it doesn't ignore.
type fakeWorkload struct {
	began   time.Time
	ignores []syscall.Signal
	ended   chan syscall.WaitStatus
	signals []syscall.Signal
	kills   []time.Duration // when, since began
	immune  int             // kills that it survives
}

func (w *fakeWorkload) signal(sig syscall.Signal) error {
	w.signals = append(w.signals, sig)
	if !slices.Contains(w.ignores, sig) {
		w.ended <- syscall.WaitStatus(sig)
	}
	return nil
}

func (w *fakeWorkload) killAll() error {
	w.kills = append(w.kills, time.Since(w.began))
	if len(w.kills) > w.immune {
		w.ended <- syscall.WaitStatus(syscall.SIGKILL)
	}
	return nil
}

func TestOversee(t *testing.T) {
	const term, usr1 = syscall.SIGTERM, syscall.SIGUSR1
	type stop struct {
		after time.Duration
		guest.Stop
	}
	for _, tc := range []struct {
		name       string
		configured string
		ignores    []syscall.Signal
		immune     int
		stops      []stop
		exits      time.Duration // by itself, with status 3; 0 never

		signals []syscall.Signal
		kills   []time.Duration
		want    guest.Exit
	}{
		{
			name: "ends by itself", exits: time.Second,
			want: guest.Exit{Code: 3},
		},
		{
			name: "stops", stops: []stop{{0, guest.Stop{TimeoutMS: 5000}}},
			signals: []syscall.Signal{term}, want: guest.Exit{Code: 143, Signal: "SIGTERM", Stopped: true},
		},
		{
			name: "the configured signal", configured: "USR1", stops: []stop{{0, guest.Stop{TimeoutMS: 5000}}},
			signals: []syscall.Signal{usr1}, want: guest.Exit{Code: 138, Signal: "SIGUSR1", Stopped: true},
		},
		{
			name: "the asked signal", configured: "USR1", stops: []stop{{0, guest.Stop{Signal: "TERM", TimeoutMS: 5000}}},
			signals: []syscall.Signal{term}, want: guest.Exit{Code: 143, Signal: "SIGTERM", Stopped: true},
		},
		{
			name: "a wrong signal is SIGTERM", configured: "NONSENSE", stops: []stop{{0, guest.Stop{TimeoutMS: 5000}}},
			signals: []syscall.Signal{term}, want: guest.Exit{Code: 143, Signal: "SIGTERM", Stopped: true},
		},
		{
			name: "stubborn", ignores: []syscall.Signal{term}, stops: []stop{{time.Second, guest.Stop{TimeoutMS: 5000}}},
			signals: []syscall.Signal{term}, kills: []time.Duration{6 * time.Second},
			want: guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true},
		},
		{
			name: "ends in its grace", ignores: []syscall.Signal{term}, stops: []stop{{0, guest.Stop{TimeoutMS: 5000}}},
			exits: 3 * time.Second, signals: []syscall.Signal{term}, want: guest.Exit{Code: 3, Stopped: true},
		},
		{
			name: "no grace", ignores: []syscall.Signal{term}, stops: []stop{{0, guest.Stop{TimeoutMS: -7}}},
			signals: []syscall.Signal{term}, kills: []time.Duration{0},
			want: guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true},
		},
		{
			name: "a second stop is shorter", ignores: []syscall.Signal{term},
			stops:   []stop{{0, guest.Stop{TimeoutMS: 60000}}, {time.Second, guest.Stop{TimeoutMS: 2000}}},
			signals: []syscall.Signal{term, term}, kills: []time.Duration{3 * time.Second},
			want: guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true},
		},
		{
			name: "a second stop gives no more time", ignores: []syscall.Signal{term},
			stops:   []stop{{0, guest.Stop{TimeoutMS: 2000}}, {time.Second, guest.Stop{TimeoutMS: 60000}}},
			signals: []syscall.Signal{term, term}, kills: []time.Duration{2 * time.Second},
			want: guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true},
		},
		{
			name: "killed again until it ends", ignores: []syscall.Signal{term}, immune: 2,
			stops: []stop{{0, guest.Stop{TimeoutMS: 1000}}}, signals: []syscall.Signal{term},
			kills: []time.Duration{time.Second, 2 * time.Second, 3 * time.Second},
			want:  guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWorkload{began: time.Now(), ignores: tc.ignores, immune: tc.immune, ended: make(chan syscall.WaitStatus, 4)}
				stops := make(chan guest.Stop)
				go func() {
					for _, s := range tc.stops {
						time.Sleep(s.after)
						stops <- s.Stop
					}
				}()
				if tc.exits > 0 {
					time.AfterFunc(tc.exits, func() { w.ended <- 3 << 8 })
				}
				got := oversee(w, w.ended, stops, tc.configured).report(false)
				if got != tc.want || !slices.Equal(w.signals, tc.signals) || !slices.Equal(w.kills, tc.kills) {
					t.Errorf("got  %+v, signals %v, kills %v\nwant %+v, signals %v, kills %v", got, w.signals, w.kills, tc.want, tc.signals, tc.kills)
				}
			})
		})
	}
}

func TestReportOOM(t *testing.T) {
	killed := syscall.WaitStatus(syscall.SIGKILL)
	for _, tc := range []struct {
		name string
		e    ending
		oom  bool
		want bool
	}{
		{"killed by it", ending{status: killed}, true, true},
		{"killed by another", ending{status: killed}, false, false},
		{"a child was killed by it", ending{status: 1 << 8}, true, false},
		{"killed by it while it was stopping", ending{status: killed, stopped: true}, true, true},
		{"killed by the stop", ending{status: killed, stopped: true, killed: true}, true, false},
		{"another signal", ending{status: syscall.WaitStatus(syscall.SIGSEGV)}, true, false},
	} {
		if got := tc.e.report(tc.oom).OOM; got != tc.want {
			t.Errorf("%s: got %v", tc.name, got)
		}
	}
	if got := (ending{status: syscall.WaitStatus(syscall.SIGSEGV | 0x80)}).report(false); got.Code != 139 || got.Signal != "SIGSEGV" {
		t.Errorf("with a core dump: %+v", got)
	}
}

func TestStepReportsPanics(t *testing.T) {
	b := New("test")
	ran := 0
	b.Step("first", func() error { ran++; return nil })
	b.Step("second", func() error { ran++; panic("a bug") })
	b.Step("third", func() error { ran++; return nil })
	if ran != 2 || !b.failed {
		t.Errorf("%d steps ran, failed %v", ran, b.failed)
	}
}
