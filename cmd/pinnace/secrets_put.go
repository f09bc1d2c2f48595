package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// secretPut are the flags of a change of a bundle.
type secretPut struct {
	from, key      string
	unset          []string
	replace, later bool
	wait           rolloutWait
}

func (c *cli) newSecretsPut() *cobra.Command {
	var p secretPut
	cmd := &cobra.Command{
		Use:   "put BUNDLE",
		Short: "Make a new version of a bundle, and bring it to what is live",
		Long: `Put reads values from stdin or a file: lines of KEY=VALUE, or JSON, or a folder with a file for each
key; with --key, one value as it is, an end of line included. Values are never written on a command
line. Keys that are not given stay as they are, unless --replace leaves them out.

Each live app that names the bundle gets the version as its manifest says (on_change): by a gated
deployment, or in place, with a signal or without one. With --later it gets it with its next deployment.`,
		Example: `  pinnace secrets put api -e prod < api.env
  pinnace secrets put api --from api.json --replace
  pinnace secrets put tls --key tls.key --from /etc/ssl/private/shop.key
  printf %s "$TOKEN" | pinnace secrets put api --key TOKEN
  pinnace secrets put api --unset OLD_TOKEN`,
		Args: bundleOnly,

		ValidArgsFunction: c.complete(c.bundleNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pinnacev1.PutSecretRequest{Bundle: args[0], Unset: p.unset, Replace: p.replace, NoDeploy: p.later}
			if p.key != "" && p.replace {
				return fail(exitInvalid, "leave out one of them", "--replace with --key would leave one key")
			}
			if len(p.unset) == 0 || p.from != "" || p.key != "" {
				set, err := c.readSecretInput(&p)
				if err != nil {
					return err
				}
				req.Set = set
			}
			return c.putSecret(cmd.Context(), req, &p.wait)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&p.from, "from", "", `file or folder to read; "-" is stdin (default: stdin)`)
	flags.StringVar(&p.key, "key", "", "read the value of this key alone, as it is")
	flags.StringArrayVar(&p.unset, "unset", nil, "take this key out")
	flags.BoolVar(&p.replace, "replace", false, "take out all keys that are not given")
	flags.BoolVar(&p.later, "later", false, "leave what runs as it is until its next deployment")
	p.wait.add(cmd)
	return cmd
}

// bundleOnly is for commands with the name of a bundle. What else was written may be a secret, and is not shown again.
func bundleOnly(_ *cobra.Command, args []string) error {
	if len(args) != 1 || strings.Contains(args[0], "=") {
		return fail(exitInvalid, "pinnace secrets put BUNDLE < FILE", "want the name of a bundle and nothing else: values are never written on a command line, where every user of this machine sees them")
	}
	return nil
}

// readSecretInput reads the values that a change sets.
func (c *cli) readSecretInput(p *secretPut) (map[string][]byte, error) {
	const hint = "a file of KEY=VALUE lines, of JSON, or a folder with a file for each key"
	fromStdin := p.from == "" || p.from == "-"
	if p.key != "" {
		if !secretKey.MatchString(p.key) {
			return nil, fail(exitInvalid, "1 to 128 of letters, digits, _, . and -, the first a letter, a digit or _", "--key: %q cannot be a key", printable(p.key))
		}
		value, err := c.readSecretValue(p, fromStdin)
		return map[string][]byte{p.key: value}, err
	}
	if !fromStdin {
		values, err := readBundle(p.from)
		if err != nil {
			return nil, fail(inputStatus(err), hint, "--from: %w", err)
		}
		return values, nil
	}
	if _, ok := c.typing(); ok {
		return nil, fail(exitInvalid, "pinnace secrets edit BUNDLE opens an editor; --key KEY asks for one value", "there is nothing to read: stdin is a terminal")
	}
	text, err := c.readStdin(maxInputFile)
	if err != nil {
		return nil, err
	}
	values, err := parseBundle("stdin", text)
	if err != nil {
		return nil, fail(exitInvalid, hint, "%w", err)
	}
	return values, nil
}

func (c *cli) readSecretValue(p *secretPut, fromStdin bool) ([]byte, error) {
	if !fromStdin {
		value, err := readBounded(p.from, maxBundle)
		if err != nil {
			return nil, fail(inputStatus(err), "", "--from: %w", err)
		}
		return value, nil
	}
	if in, ok := c.typing(); ok {
		return c.askHidden(in, "the value of "+p.key)
	}
	return c.readStdin(maxBundle)
}

// typing is the terminal that somebody types at, if stdin is one.
func (c *cli) typing() (*os.File, bool) {
	in, ok := c.stdin.(*os.File)
	return in, ok && term.IsTerminal(int(in.Fd()))
}

// askHidden reads a line that is not shown.
func (c *cli) askHidden(in *os.File, what string) ([]byte, error) {
	if c.noInput {
		return nil, fail(exitInvalid, "write it to stdin", "%s is not given, and --no-input forbids to ask for it", what)
	}
	_, _ = io.WriteString(c.stderr, what+" (not shown): ")
	value, err := term.ReadPassword(int(in.Fd()))
	_, _ = io.WriteString(c.stderr, "\n")
	if err == nil && len(value) == 0 {
		err = fail(exitInvalid, "", "%s is empty", what)
	}
	return value, err
}

func (c *cli) readStdin(most int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(c.stdin, most+1))
	if err == nil && int64(len(text)) > most {
		err = fail(exitInvalid, "secrets are held in memory; bring large files in the image or in a volume", "stdin has more than %s", byteSize(most))
	}
	return text, err
}

// parseBundle reads values from JSON or from lines. Errors have nothing of a value in them.
func parseBundle(name string, text []byte) (map[string][]byte, error) {
	if trimmed := bytes.TrimLeft(text, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '{' {
		return parseBundleJSON(name, text)
	}
	pairs, err := parseDotenv(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", name, err)
	}
	values := map[string][]byte{}
	for key, value := range pairs {
		values[key] = []byte(value)
	}
	return values, nil
}

// putSecret makes a change and follows the deployments that it brings, one after the other. When several fail, the
// error is that of the first.
func (c *cli) putSecret(ctx context.Context, req *pinnacev1.PutSecretRequest, wait *rolloutWait) error {
	client, env, err := c.clientIn()
	if err != nil {
		return err
	}
	req.Environment, req.IdempotencyKey = env, newKey()
	res, err := client.PutSecret(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	switch {
	case res.Msg.Unchanged:
		c.say("nothing to do: version %d of %s has exactly that", res.Msg.Version, req.Bundle)
	default:
		c.say("version %d of %s", res.Msg.Version, req.Bundle)
	}
	for _, app := range res.Msg.Pending {
		c.say("%s runs with what it has until it is deployed", printable(app))
	}
	return wait.followAll(ctx, c, client, res.Msg, res.Msg.Deployments)
}

// moment shows when something was, to people.
func moment(t *timestamppb.Timestamp) string { return t.AsTime().Local().Format(time.DateTime) }
