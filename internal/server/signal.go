package server

import "sync"

// signal tells any number of waiters that something has changed. It carries no facts: who is woken looks
// for itself, so a slow waiter misses nothing but the steps in between.
type signal struct {
	mu    sync.Mutex
	ch    chan struct{} // guarded by mu; closed by fire
	fired uint64        // guarded by mu; how often
}

func newSignal() *signal { return &signal{ch: make(chan struct{})} }

// next is closed by the next fire. Take it before looking.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fired++
	close(s.ch)
	s.ch = make(chan struct{})
}

// count is how often it was fired.
func (s *signal) count() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fired
}
