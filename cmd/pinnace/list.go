package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// list ends a command that lists what the server answered: with --json as that is, else as a table. The columns of heads,
// and of the lines that rows writes, are parted by tabs; without heads there is no line of them.
func (c *cli) list(answer proto.Message, heads string, rows func(w io.Writer)) error {
	if c.json {
		return c.printProto(answer)
	}
	return c.table(heads, rows)
}

// table writes a table to stdout.
func (c *cli) table(heads string, rows func(w io.Writer)) error {
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	if heads != "" {
		fmt.Fprintln(w, heads)
	}
	rows(w)
	return w.Flush()
}

// rollout ends a command that starts a deployment in the chosen environment: start makes the call, and what it has started
// is followed. It returns nil when there was nothing to start, and has told the user so.
func (c *cli) rollout(cmd *cobra.Command, wait *rolloutWait, start func(ctx context.Context, client pinnacev1connect.ControlServiceClient, env string) (*pinnacev1.Deployment, error)) error {
	client, env, err := c.clientIn()
	if err != nil {
		return err
	}
	d, err := start(cmd.Context(), client, env)
	if err != nil || d == nil {
		return err
	}
	return wait.follow(cmd.Context(), c, client, d)
}
