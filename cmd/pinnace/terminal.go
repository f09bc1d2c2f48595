package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// terminal is the one that somebody sits at, while its keys go to a command elsewhere.
type terminal struct {
	in, out *os.File
	restore func() // makes it as it was; may be called more than once
}

// openTerminal makes the terminal of stdin pass every key on as it is, Ctrl-C included. The caller restores it.
func openTerminal(stdin io.Reader, stdout io.Writer) (*terminal, error) {
	in, ok := stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, fail(exitInvalid, "leave -t away to pipe something in", "-t needs a terminal, and stdin is none")
	}
	state, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set up the terminal: %w", err)
	}
	t := &terminal{in: in, out: in, restore: sync.OnceFunc(func() {
		_ = term.Restore(int(in.Fd()), state) // it fails when the terminal is gone
	})}
	if out, ok := stdout.(*os.File); ok && term.IsTerminal(int(out.Fd())) {
		t.out = out
	}
	return t, nil
}

// size is how large it is now, or nothing when it does not know.
func (t *terminal) size() guest.Size {
	columns, rows, err := term.GetSize(int(t.out.Fd()))
	if err != nil {
		return guest.Size{}
	}
	return guest.Size{Rows: uint16(min(rows, guest.MaxTerminal)), Cols: uint16(min(columns, guest.MaxTerminal))}
}

// resizes sends its size whenever that changes, until ctx is done.
func (t *terminal) resizes(ctx context.Context) <-chan guest.Size {
	changed, sizes := make(chan os.Signal, 1), make(chan guest.Size)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			select {
			case sizes <- t.size():
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// forwarded are the signals that go on to a command without a terminal, with the names that they have there.
var forwarded = map[os.Signal]string{syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT"}

// signals sends the names of the signals that ask this process to end, until ctx is done. A second one of the same kind
// calls giveUp: whatever the first was for, it has not worked.
func signals(ctx context.Context, giveUp func()) <-chan string {
	asked, names := make(chan os.Signal, 8), make(chan string, 8)
	for sig := range forwarded {
		signal.Notify(asked, sig)
	}
	go func() {
		defer signal.Stop(asked)
		seen := map[os.Signal]bool{}
		for {
			select {
			case sig := <-asked:
				if seen[sig] {
					giveUp()
					return
				}
				seen[sig] = true
				select {
				case names <- forwarded[sig]:
				default:
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return names
}
