package guest

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestSetClock(t *testing.T) {
	for _, tc := range []struct {
		name    string
		delays  []time.Duration // of the answers
		want    int             // Times that the guest gets
		wantErr bool
	}{
		{"at once", []time.Duration{0}, 1, false},
		{"slow, but within bounds", []time.Duration{900 * time.Millisecond}, 1, false},
		{"after a pause", []time.Duration{5 * time.Minute, 0}, 2, false},
		{"ever late", []time.Duration{2 * time.Second, 2 * time.Second, 2 * time.Second}, 3, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			session(t, Options{HeartbeatTimeout: time.Hour}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
				g.start(t, h)
				got := 0
				go func() {
					for i, delay := range tc.delays {
						m, ok := g.next(g.reader).(Time)
						if !ok || time.Unix(0, m.Now).After(time.Now()) || m.ID == 0 {
							t.Errorf("got %+v", m)
						}
						got++
						time.Sleep(delay) // in a bubble: no time passes
						g.send(Clock{ID: m.ID + 1000, Off: 5})
						g.send(Clock{ID: m.ID, Off: int64(time.Duration(i+1) * time.Second)})
					}
				}()
				off, err := h.SetClock(t.Context())
				if (err != nil) != tc.wantErr || off != time.Second || got != tc.want {
					t.Errorf("off %v, %v, after %d times; want 1s after %d, error %v", off, err, got, tc.want, tc.wantErr)
				}
			})
		})
	}
}

func TestStats(t *testing.T) {
	session(t, Options{}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		want := Stats{MemoryBytes: 1, MemoryPeakBytes: 2, MemoryMaxBytes: 3, CPUMicros: maxAmount, PIDs: 4, DiskBytes: 6, DiskUsedBytes: 6}
		go func() {
			m, ok := g.next(g.reader).(AskStats)
			if !ok {
				t.Error("no AskStats")
			}
			want.ID = m.ID
			g.send(Stats{ID: 1}) // to what nobody has asked
			g.send(want)
		}()
		got, err := h.Stats(t.Context())
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}

		// A guest that does not answer in time; what it says later is nobody's.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		late := make(chan uint64, 1)
		go func() { late <- g.next(g.reader).(AskStats).ID }()
		if _, err := h.Stats(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
		g.send(Stats{ID: <-late})

		// Another kind of answer than the question's.
		go func() { g.send(Clock{ID: g.next(g.reader).(AskStats).ID}) }()
		if _, err := h.Stats(t.Context()); !errors.Is(err, ErrProtocol) {
			t.Errorf("a clock for an answer: %v", err)
		}
	})
}

// TestOlderInit does not wait for answers that will never come.
func TestOlderInit(t *testing.T) {
	session(t, Options{}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
		g.send(Hello{Version: Version, Nonce: testNonce, Can: []string{"other things"}})
		if _, err := h.SetClock(t.Context()); !errors.Is(err, ErrNotAttended) {
			t.Errorf("clock: %v", err)
		}
		if _, err := h.Stats(t.Context()); !errors.Is(err, ErrNotAttended) {
			t.Errorf("statistics: %v", err)
		}
	})
}

// TestManyQuestions bounds what a guest that never answers can make the host keep.
func TestManyQuestions(t *testing.T) {
	session(t, Options{}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		go g.drain()
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, maxAsked+1)
		for range maxAsked + 1 {
			go func() {
				_, err := h.Stats(ctx)
				errs <- err
			}()
		}
		if err := <-errs; errors.Is(err, context.Canceled) {
			t.Errorf("all of %d questions wait: %v", maxAsked+1, err)
		}
		cancel()
		for range maxAsked {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if h.mu.Lock(); len(h.asked) != 0 {
			t.Errorf("%d questions are kept", len(h.asked))
		}
		h.mu.Unlock()
	})
}

func TestStatsBounds(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    Stats
		ok   bool
	}{
		{"nothing", Stats{}, true},
		{"negative memory", Stats{MemoryBytes: -1}, false},
		{"negative load", Stats{Load15Milli: -1}, false},
		{"more than there can be", Stats{CPUMicros: maxAmount + 1}, false},
		{"a full disk", Stats{DiskBytes: 5, DiskUsedBytes: 5}, true},
		{"more than a full disk", Stats{DiskBytes: 5, DiskUsedBytes: 6}, false},
	} {
		frame, err := Encode(nil, tc.s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(TypeStats, frame[lengthBytes+1:]); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := Decode(TypeStats, []byte(`{"pids":1e400}`)); !errors.Is(err, ErrFrame) {
		t.Errorf("a number that is none: %v", err)
	}
	session(t, Options{}, ErrProtocol, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		go g.drain()
		g.send(Stats{PIDs: -4})
		<-h.Done()
	})
}
