package main

import (
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/proxy"
)

func (c *cli) newProxy() *cobra.Command {
	var dirs directories
	var level logFlag
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run the proxy of a host; the agent starts it by itself",
		Long: `Proxy carries connections from public ports and virtual addresses to instances. It is a process
of its own, so that restarting the agent resets no connection.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return proxy.Run(cmd.Context(), proxy.Options{
				Socket: proxySocket(dirs.run), Log: c.logger("proxy", level.level),
			})
		},
	}
	dirs.add(cmd)
	level.add(cmd, slog.LevelInfo)
	return cmd
}

func proxySocket(runDir string) string { return filepath.Join(runDir, "proxy.sock") }
