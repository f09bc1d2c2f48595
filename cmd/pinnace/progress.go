package main

import (
	"context"
	"fmt"
	"time"
)

// progress says what is going on when it takes longer than a second, and then every five. The function
// that it returns ends it; it must be called.
func (c *cli) progress(ctx context.Context, what string) (end func()) {
	if c.quiet {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	started := time.Now()
	go func() {
		defer close(done)
		wait := time.Second
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
				fmt.Fprintf(c.stderr, "%s… %ds\n", what, int(time.Since(started).Seconds()))
				wait = 5 * time.Second
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
