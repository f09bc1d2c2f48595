package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/proxy"
)

func (c *cli) newProxy() *cobra.Command {
	var dirs directories
	var level logFlag
	var takeOver bool
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run the proxy of a host; the agent starts it by itself",
		Long: `Proxy carries connections from public ports and virtual addresses to instances. It is a process
of its own, so that restarting the agent resets no connection. It keeps its last configuration in the
run-time directory and begins with it when it was killed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Its standard error is that of the agent that started it, and may end long before it.
			signal.Ignore(syscall.SIGPIPE)
			return proxy.Run(cmd.Context(), proxy.Options{
				Socket: proxySocket(dirs.run), TakeOver: takeOver, Build: version, Log: c.logger("proxy", level.level),
			})
		},
	}
	dirs.add(cmd)
	level.add(cmd, slog.LevelInfo)
	cmd.Flags().BoolVar(&takeOver, "take-over", false, "take the place of the proxy that runs, without closing a port or a connection")
	cmd.AddCommand(c.newProxyStatus())
	return cmd
}

func (c *cli) newProxyStatus() *cobra.Command {
	var dirs directories
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Print what the proxy of this host is doing, as JSON",
		Long:    `Status prints listeners, backends and counters of the proxy that runs on this host.`,
		Example: "  pinnace proxy status | jq '.listeners[] | {id, open, error}'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := proxy.Dial(cmd.Context(), proxySocket(dirs.run))
			if err != nil {
				return fail(exitUnreachable, "does an agent run here, with the same --run-dir?", "%w", err)
			}
			defer func() { _ = client.Close() }()
			status, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			text, err := json.MarshalIndent(status, "", "  ")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.stdout, string(text))
			return err
		},
	}
	dirs.add(cmd)
	return cmd
}

func proxySocket(runDir string) string { return filepath.Join(runDir, "proxy.sock") }
