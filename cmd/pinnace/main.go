// Command pinnace is the whole of Pinnace in one file: the command line, the server, the agent of a host
// with its proxy, and a registry.
//
// Each sub-command has a file of its own with its flags, its help and a short function that reads from top
// to bottom; the work is in internal/. Results go to stdout, talk to stderr, and every error becomes one
// message and one exit status here.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// version is set by the build.
var version = "unknown"

func main() {
	// The agent of a pinnace that was built without the small one starts itself by that name.
	holder.Enter()
	confined()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	c := &cli{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
	}
	status := c.run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}
