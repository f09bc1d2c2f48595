package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// named are the things that the server has names of, and where the names come from. The usage of a command says what its
// arguments are by these words ("logs APP|INSTANCE"), that of a flag by the same in small letters and back-quotes.
func (c *cli) named() map[string]func(context.Context) []cobra.Completion {
	return map[string]func(context.Context) []cobra.Completion{
		"APP": c.apps, "INSTANCE": c.instances, "RELEASE": c.releases, "ENV": c.environments, "ENVIRONMENT": c.environments, "HOST": c.hosts,
		"DEPLOYMENT": c.deployments, "VOLUME": c.volumes,
	}
}

// completeNames completes the names in the arguments and flags of cmd and of those below it, unless they are
// completed already.
func (c *cli) completeNames(cmd *cobra.Command) {
	named := c.named()
	if names := positions(cmd.Use); cmd.ValidArgsFunction == nil && slices.ContainsFunc(names, func(words []string) bool { return anyNamed(named, words) }) {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) >= len(names) {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return askFor(cmd, named, names[len(args)])
		}
	}
	for _, flags := range []*pflag.FlagSet{cmd.Flags(), cmd.PersistentFlags()} {
		flags.VisitAll(func(f *pflag.Flag) {
			word, _ := pflag.UnquoteUsage(f)
			if _, has := cmd.GetFlagCompletionFunc(f.Name); !has && named[strings.ToUpper(word)] != nil {
				// It fails only when there is one already.
				_ = cmd.RegisterFlagCompletionFunc(f.Name, func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
					return askFor(cmd, named, []string{strings.ToUpper(word)})
				})
			}
		})
	}
	for _, sub := range cmd.Commands() {
		c.completeNames(sub)
	}
}

func anyNamed(named map[string]func(context.Context) []cobra.Completion, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return named[w] != nil })
}

// askFor asks the server for names of some kinds. Whoever presses Tab waits for it, so it gets a second.
func askFor(cmd *cobra.Command, named map[string]func(context.Context) []cobra.Completion, kinds []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	var words []cobra.Completion
	for _, kind := range kinds {
		if names := named[kind]; names != nil {
			words = append(words, names(ctx)...)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// positions are what the arguments of a command may be, by its usage: "scale APP COUNT" takes an APP first, then a COUNT.
func positions(use string) (all [][]string) {
	value := false // of the flag before
	for _, raw := range strings.Fields(strings.NewReplacer(" | ", " ", "…", "", "...", "").Replace(use))[1:] {
		word := strings.Trim(raw, "[]")
		switch {
		case word == "--":
			return all // what follows is for another program
		case strings.HasPrefix(word, "-"):
			value = !strings.HasSuffix(raw, "]")
		case value:
			value = false
		default:
			all = append(all, strings.Split(word, "|"))
		}
	}
	return all
}
