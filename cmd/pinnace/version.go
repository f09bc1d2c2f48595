package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

func (c *cli) newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		RunE: func(*cobra.Command, []string) error {
			if c.json {
				return c.printJSON(map[string]string{
					"version": version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				})
			}
			c.print("pinnace %s %s/%s %s", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
			return nil
		},
	}
}
