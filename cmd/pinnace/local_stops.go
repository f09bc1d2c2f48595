package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// stops are the requests of whoever runs the command to end it.
type stops struct {
	ctx    context.Context // done with the first
	cancel context.CancelFunc
	killc  chan struct{} // closed with the second
	quit   chan struct{}
	done   chan struct{}
}

// listenForStops counts signals, beside whatever else ends ctx. A terminal that is closed, and an output that nobody
// reads any more, must not end the process at once: the microVM would be left.
func listenForStops(ctx context.Context) *stops {
	s := &stops{killc: make(chan struct{}), quit: make(chan struct{}), done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// It is enough that the write fails. Not ignored: what is started would ignore it, too.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	go func() {
		defer close(s.done)
		defer signal.Stop(signals)
		defer signal.Stop(pipes)
		for n := 1; ; n++ {
			select {
			case <-signals:
			case <-s.quit:
				return
			}
			s.cancel()
			if n == 2 {
				close(s.killc)
			}
		}
	}()
	return s
}

// first asks for a stop, as the first signal does.
func (s *stops) first() { s.cancel() }

func (s *stops) end() {
	close(s.quit)
	<-s.done
	s.cancel()
}
