package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/proxy"
)

// TestProxyThatDiedIsReplaced, and one that was told to end is not.
func TestProxyThatDiedIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "proxy.sock")
	var die context.CancelFunc
	var dead chan error
	starts := 0
	start := func(ctx context.Context) (*proxyProcess, error) {
		starts++
		life, cancel := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan error, 2)
		die, dead = cancel, ended
		go func() {
			err := proxy.Run(life, proxy.Options{Socket: socket})
			ended <- err
			ended <- err
		}()
		for {
			if _, err := proxyStatus(ctx, socket); err == nil {
				return &proxyProcess{exited: ended}, nil
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	link := &proxyLink{socket: socket, start: start, log: slog.New(slog.DiscardHandler)}
	for life := range 2 {
		link.started = time.Time{}
		status, err := link.Apply(t.Context(), proxy.Config{})
		if err != nil || status == nil || starts != life+1 {
			t.Fatalf("life %d: %+v, %v after %d starts", life, status, err, starts)
		}
		if life == 0 {
			die()
			<-dead
		}
	}
	// Twice within a second would be a loop.
	die()
	<-dead
	if _, err := link.Status(t.Context()); err == nil || starts != 2 {
		t.Errorf("at once again: %v after %d starts", err, starts)
	}
	link.started = time.Time{}
	if _, err := link.Status(t.Context()); err != nil || starts != 3 {
		t.Errorf("later: %v after %d starts", err, starts)
	}
	if err := link.shutdown(t.Context()); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	link.started = time.Time{}
	if _, err := link.Status(t.Context()); err == nil || starts != 3 {
		t.Errorf("after the end: %v, %d starts", err, starts)
	}
}
