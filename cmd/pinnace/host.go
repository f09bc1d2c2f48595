package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

func (c *cli) newHost() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Let hosts join, list, drain and remove them",
		Long: `A host runs an agent that has joined. What a host that has been away for 15 seconds ran is
started elsewhere, except for instances with volumes: their data is where it is, and they wait.`,
	}
	cmd.AddCommand(c.newHostList(), c.newHostDrain(), c.newHostUndrain(), c.newHostRemove(), c.newHostJoinToken(), c.newHostRevoke())
	return cmd
}

func (c *cli) newHostList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the hosts and what is booked on them",
		Example: "  pinnace host list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.ListHosts(cmd.Context(), connect.NewRequest(&pinnacev1.ListHostsRequest{}))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "HOST\tSTATE\tARCH\tINSTANCES\tMEMORY\tDISK\tCPU\tDRIVER\tVERSION\tLABELS", func(w io.Writer) {
				for _, h := range res.Msg.Hosts {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d of %d MiB\t%d of %d MiB\t%g\t%s\t%s\t%s\n", printable(h.Id), hostState(h), printable(h.Architecture), h.Instances,
						h.MemoryBookedBytes>>20, h.MemoryBytes>>20, h.DiskBookedBytes>>20, h.DiskBytes>>20, float64(h.CpuMilli)/1000, printable(strings.TrimSpace(h.Driver+" "+h.Accelerator)),
						printable(h.Version), printable(labelText(h.Labels)))
				}
			})
		},
	}
}

// hostState says whether a host is there, and since when it is not.
func hostState(h *pinnacev1.Host) string {
	state := "connected"
	switch {
	case !h.Connected && h.LastSeenAt == nil:
		state = "away"
	case !h.Connected:
		state = "away since " + clock(h.LastSeenAt)
	}
	if h.DrainingAt != nil {
		state += ", draining"
		if h.Instances == 0 {
			state = strings.Replace(state, "draining", "drained", 1)
		}
	}
	return state
}

func labelText(labels map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, name+"="+labels[name])
	}
	return strings.Join(all, ",")
}

func (c *cli) newHostDrain() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "drain HOST",
		Short: "Have a host become empty",
		Long: `Drain has a host become empty, to be updated or removed. It is given nothing any more; each
instance leaves it when a successor elsewhere has been ready for the manifest's hold, at most
max_parallel of an app at a time. Instances with volumes stay, and are named.`,
		Example: "  pinnace host drain h2 --wait",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.hosts),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.DrainHost(cmd.Context(), connect.NewRequest(&pinnacev1.DrainHostRequest{Host: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			host := res.Msg.Host
			if wait {
				if host, err = c.awaitEmpty(cmd.Context(), client, host); err != nil {
					return err
				}
			}
			if c.json {
				return c.printProto(host)
			}
			if host.Instances == 0 {
				c.say("host %s is empty, and is given nothing until pinnace host undrain %s", host.Id, host.Id)
			} else {
				c.say("host %s drains: %s to go; pinnace host list shows how many are left", host.Id, plural(int(host.Instances), "instance"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nothing is left")
	return cmd
}

// awaitEmpty waits until nothing runs on a host, and says how many are left whenever that changes.
func (c *cli) awaitEmpty(ctx context.Context, client pinnacev1connect.ControlServiceClient, host *pinnacev1.Host) (*pinnacev1.Host, error) {
	left := uint32(0)
	for host.Instances > 0 {
		if host.Instances != left {
			left = host.Instances
			c.say("%s left on %s", plural(int(left), "instance"), host.Id)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
		res, err := client.ListHosts(ctx, connect.NewRequest(&pinnacev1.ListHostsRequest{}))
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(res.Msg.Hosts, func(h *pinnacev1.Host) bool { return h.Id == host.Id })
		if i < 0 {
			return nil, fail(exitNotFound, "", "host %s was removed meanwhile", host.Id)
		}
		if host = res.Msg.Hosts[i]; host.DrainingAt == nil {
			return nil, fail(exitConflict, "", "somebody has ended the drain of host %s", host.Id)
		}
	}
	return host, nil
}

func (c *cli) newHostUndrain() *cobra.Command {
	return &cobra.Command{
		Use:     "undrain HOST",
		Short:   "End a drain: the host is given instances again",
		Example: "  pinnace host undrain h2",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.hosts),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.DrainHost(cmd.Context(), connect.NewRequest(&pinnacev1.DrainHostRequest{Host: args[0], End: true, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg.Host)
			}
			c.say("host %s is given instances again", res.Msg.Host.Id)
			return nil
		},
	}
}

func (c *cli) newHostRemove() *cobra.Command {
	var lose bool
	var confirm string
	cmd := &cobra.Command{
		Use:   "remove HOST",
		Short: "Forget a host that is gone for good",
		Long: `Remove forgets a host. Drain it first and end its agent; a host that has died needs neither, once
successors of its instances run elsewhere. With --lose it is removed with what only it had:
instances that nothing has succeeded, and the data in their volumes.`,
		Example: "  pinnace host remove h2\n  pinnace host remove h2 --lose --confirm h2",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.hosts),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			if lose {
				if err := c.confirm("this gives up what only host "+args[0]+" has, volumes included", args[0], confirm); err != nil {
					return err
				}
			}
			res, err := client.RemoveHost(cmd.Context(), connect.NewRequest(&pinnacev1.RemoveHostRequest{Host: args[0], Lose: lose, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("removed host %s", args[0])
			for _, id := range res.Msg.Lost {
				c.say("lost with it: instance %s", id)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&lose, "lose", false, "also when instances or volumes are lost with it")
	cmd.Flags().StringVar(&confirm, "confirm", "", "the host's name, in place of being asked for it")
	return cmd
}

// confirm has somebody write the name of what is about to be lost. given is what they wrote in advance.
func (c *cli) confirm(what, name, given string) error {
	in, ok := c.stdin.(*os.File)
	if given == "" && !c.noInput && ok && term.IsTerminal(int(in.Fd())) {
		fmt.Fprintf(c.stderr, "%s. Write its name to go on: ", what)
		line, err := bufio.NewReader(c.stdin).ReadString('\n')
		if err != nil {
			return fail(exitInvalid, "", "nothing was written")
		}
		given = strings.TrimSpace(line)
	}
	if given != name {
		return fail(exitInvalid, "--confirm "+name, "%s, and was not confirmed", what)
	}
	return nil
}

// hosts are the hosts that have joined.
func (c *cli) hosts(ctx context.Context) []cobra.Completion {
	client, _, err := c.client()
	if err != nil {
		return nil
	}
	res, err := client.ListHosts(ctx, connect.NewRequest(&pinnacev1.ListHostsRequest{}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, h := range res.Msg.Hosts {
		words = append(words, cobra.CompletionWithDesc(h.Id, hostState(h)))
	}
	return words
}
