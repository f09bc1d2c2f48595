package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newSecrets() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secrets",
		Short: "Put, list and revoke an environment's secrets",
		Long: `Secrets are key-value sets, in bundles, of an environment. A manifest names the bundles that an app gets
([secrets.BUNDLE]). Each change makes a new version, and a deployment keeps the versions that it was made
with, so that a rollback brings them back.

Values go in and never come out again: only hosts that run an app which names the bundle get them.
What is shown are versions and the names of keys.`,
	}
	cmd.AddCommand(c.newSecretsPut(), c.newSecretsEdit(), c.newSecretsList(), c.newSecretsShow(), c.newSecretsVersions(), c.newSecretsRevoke())
	return cmd
}

func (c *cli) newSecretsList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the bundles",
		Example: "  pinnace secrets list -e prod",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.ListSecrets(cmd.Context(), connect.NewRequest(&pinnacev1.ListSecretsRequest{Environment: env}))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "BUNDLE\tVERSION\tKEYS\tUSED BY", func(w io.Writer) {
				for _, b := range res.Msg.Bundles {
					version := "revoked"
					if b.Newest != nil {
						version = strconv.FormatUint(b.Newest.Version, 10)
					}
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", printable(b.Name), version, len(b.GetNewest().GetKeys()), orNone(secretUsers(b)))
				}
			})
		},
	}
}

// secretUsers are the apps that run with a bundle, with their versions of it where these are not the newest.
func secretUsers(b *pinnacev1.SecretBundle) []string {
	var users []string
	for _, u := range b.Users {
		text := printable(u.App)
		if u.Version != b.GetNewest().GetVersion() {
			text += fmt.Sprintf(" (version %d)", u.Version)
		}
		users = append(users, text)
	}
	return users
}

// bundle asks for a bundle by its name.
func (c *cli) bundle(ctx context.Context, name string) (*pinnacev1.SecretBundle, error) {
	client, env, err := c.clientIn()
	if err != nil {
		return nil, err
	}
	res, err := client.GetSecret(ctx, connect.NewRequest(&pinnacev1.GetSecretRequest{Environment: env, Bundle: name}))
	if err != nil {
		return nil, err
	}
	return res.Msg.Bundle, nil
}

func (c *cli) newSecretsShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show BUNDLE",
		Short:   "Show the keys of a bundle and who uses it; never a value",
		Example: "  pinnace secrets show api -e prod",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.bundleNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := c.bundle(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(b)
			}
			if b.Newest == nil {
				c.say("all versions of %s were revoked", printable(b.Name))
			} else {
				c.say("version %d, put by %s on %s", b.Newest.Version, printable(b.Newest.PutBy), moment(b.Newest.PutAt))
			}
			for _, user := range secretUsers(b) {
				c.say("used by %s", user)
			}
			for _, key := range b.GetNewest().GetKeys() {
				c.print("%s", printable(key))
			}
			return nil
		},
	}
}

func (c *cli) newSecretsVersions() *cobra.Command {
	return &cobra.Command{
		Use:     "versions BUNDLE",
		Short:   "List the versions of a bundle, the newest first",
		Example: "  pinnace secrets versions api -e prod",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.bundleNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := c.bundle(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.list(b, "VERSION\tPUT\tBY\tKEYS\tREVOKED\tUSED BY", func(w io.Writer) {
				for _, v := range b.Versions {
					revoked := "no"
					if v.RevokedAt != nil {
						revoked = fmt.Sprintf("%s by %s", moment(v.RevokedAt), printable(v.RevokedBy))
					}
					var users []string
					for _, u := range b.Users {
						if u.Version == v.Version {
							users = append(users, printable(u.App))
						}
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", v.Version, moment(v.PutAt), printable(v.PutBy), printable(strings.Join(v.Keys, ", ")), revoked, orNone(users))
				}
			})
		},
	}
}

func (c *cli) newSecretsRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke BUNDLE VERSION…",
		Short: "Destroy the values of versions that nothing runs with",
		Long: `Revoke destroys what is stored of versions of a bundle. There is no way back: a rollback to a deployment
that had one is refused, or takes the newest with --secrets=now. What an app runs with cannot be
revoked; put a new version first. A backup that was made before still has the version, sealed.

What leaked has to be made worthless where it is good for something, too.`,
		Example: "  pinnace secrets revoke api 3 -e prod\n  pinnace secrets revoke api 1-4 6",
		Args:    cobra.MinimumNArgs(2),

		ValidArgsFunction: c.complete(c.bundleNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			versions, err := readVersions(args[1:])
			if err != nil {
				return err
			}
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.RevokeSecret(cmd.Context(), connect.NewRequest(&pinnacev1.RevokeSecretRequest{
				Environment: env, Bundle: args[0], Versions: versions, IdempotencyKey: newKey(),
			}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			if len(res.Msg.Revoked) == 0 {
				c.say("nothing to do: they were revoked before")
			}
			for _, v := range res.Msg.Revoked {
				c.say("version %d of %s is gone", v, printable(args[0]))
			}
			return nil
		},
	}
}

// maxRevoked bounds how many versions one command revokes.
const maxRevoked = 1024

// readVersions reads numbers and ranges of them: 3, 1-4.
func readVersions(args []string) ([]uint64, error) {
	var all []uint64
	for _, arg := range args {
		from, to, ranged := strings.Cut(arg, "-")
		first, err := strconv.ParseUint(from, 10, 32)
		last := first
		if ranged && err == nil {
			last, err = strconv.ParseUint(to, 10, 32)
		}
		if err != nil || first == 0 || last < first {
			return nil, fail(exitInvalid, "it looks like 3, or like 1-4", "%q is not a version of a bundle", printable(arg))
		}
		if last-first >= maxRevoked || len(all)+int(last-first) >= maxRevoked {
			return nil, fail(exitInvalid, "do it in several steps", "more than %d versions at once", maxRevoked)
		}
		for v := first; v <= last; v++ {
			if !slices.Contains(all, v) {
				all = append(all, v)
			}
		}
	}
	return all, nil
}

// bundleNames are the names of the environment's secret bundles.
func (c *cli) bundleNames(ctx context.Context) []cobra.Completion {
	client, env, err := c.clientIn()
	if err != nil {
		return nil
	}
	res, err := client.ListSecrets(ctx, connect.NewRequest(&pinnacev1.ListSecretsRequest{Environment: env}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, b := range res.Msg.Bundles {
		words = append(words, b.Name)
	}
	return words
}

// secretsOf is a flag that says which secrets a rollback takes.
type secretsOf string

func (s *secretsOf) add(cmd *cobra.Command) {
	*s = "then"
	cmd.Flags().Var(s, "secrets", "which secrets to take: then or now")
	// It fails only when there is no such flag, and there is.
	_ = cmd.RegisterFlagCompletionFunc("secrets", cobra.FixedCompletions([]cobra.Completion{"then", "now"}, cobra.ShellCompDirectiveNoFileComp))
}

// Set implements pflag.Value.
func (s *secretsOf) Set(text string) error {
	if text != "then" && text != "now" {
		return fmt.Errorf("want then or now")
	}
	*s = secretsOf(text)
	return nil
}

// String implements pflag.Value.
func (s *secretsOf) String() string { return string(*s) }

// Type implements pflag.Value.
func (s *secretsOf) Type() string { return "then|now" }
