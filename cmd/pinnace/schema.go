package main

import (
	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *cli) newSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of manifests, for editors",
		Long: `Schema prints a JSON Schema (draft 7) of pinnace.toml, with which an editor completes keys, shows
what they mean, and marks mistakes while you type. What it refuses, check refuses too; check
knows more, such as two ports with the same number.

Editors with Taplo inside, such as VS Code with Even Better TOML, find it through a comment at
the top of the manifest:

  #:schema ./pinnace.schema.json`,
		Example: `  pinnace schema > pinnace.schema.json`,
		RunE: func(*cobra.Command, []string) error {
			_, err := c.stdout.Write(manifest.JSONSchema())
			return err
		},
	}
}
