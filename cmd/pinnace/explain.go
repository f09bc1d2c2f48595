package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *cli) newExplain() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "explain [KEY] [-f FILE]",
		Short: "Say what a manifest comes to, or what one of its keys means",
		Long: `Explain prints every effective value of a manifest and where it comes from: a place in the file,
a default of the schema version, or the config of the image.

With KEY it says what the key means, its type, its bounds and its default, and what a change of
it does to instances that run. KEY may have any name in place of the one that you choose:
ports.web.port, ports.NAME.port and ports.*.port are one key. Its value is added when there is
a manifest.`,
		Example: `  pinnace explain
  pinnace explain rollout.hold
  pinnace explain ports.web.edge -f api.toml`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.explainAll(file)
			}
			return c.explainKey(args[0], file, cmd.Flags().Changed("file"))
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", manifestName, "the manifest")
	return cmd
}

// completeKeys completes a key path one part at a time.
func completeKeys(_ *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var words []cobra.Completion
	for _, k := range manifest.Keys() {
		path := strings.Replace(k.Path, "*", "NAME", 1)
		if strings.HasPrefix(path, word) {
			doc, _, _ := strings.Cut(k.Doc, ". ")
			words = append(words, cobra.CompletionWithDesc(path, strings.TrimSuffix(doc, ".")))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// explainedManifest is what explain prints with --json.
type explainedManifest struct {
	File   string           `json:"file"`
	Name   string           `json:"name"`
	Schema string           `json:"schema"`
	Hash   manifest.Hash    `json:"hash"`
	Values []manifest.Value `json:"values"`
}

func (c *cli) explainAll(file string) error {
	m, err := c.parseManifest(file)
	if err != nil {
		return err
	}
	values := m.Values()
	if c.json {
		return c.printJSON(explainedManifest{File: file, Name: m.Name, Schema: m.Schema, Hash: m.Hash(), Values: values})
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tVALUE\tFROM")
	for _, v := range values {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Key, shownValue(v), shownSource(v, m, file))
	}
	return w.Flush()
}

// parseManifest reads a manifest, and tells the user what is wrong with it.
func (c *cli) parseManifest(file string) (*manifest.Manifest, error) {
	src, err := c.readManifest(file)
	if err != nil {
		return nil, err
	}
	m, problems := manifest.Parse(src)
	if m != nil {
		return m, nil
	}
	if c.json {
		if err := c.printJSON(checkResult{File: file, Problems: problems}); err != nil {
			return nil, err
		}
	} else {
		c.showProblems(file, src, problems)
	}
	return nil, errReported{exitInvalid}
}

// shownValue gives the value on one line; what only the image knows is in brackets.
func shownValue(v manifest.Value) string {
	if v.TOML == "" {
		return "(" + v.Text + ")"
	}
	return printable(v.TOML)
}

func shownSource(v manifest.Value, m *manifest.Manifest, file string) string {
	switch v.Source {
	case manifest.SourceFile:
		return fmt.Sprintf("%s:%d", file, v.Line)
	case manifest.SourceImage:
		return "image config"
	default:
		return "default (" + m.Schema + ")"
	}
}

// explainedKey is what explain KEY prints with --json.
type explainedKey struct {
	Key      string   `json:"key"`
	Type     string   `json:"type"`
	Meaning  string   `json:"meaning"`
	Required bool     `json:"required"`
	Default  string   `json:"default,omitempty"`
	Bounds   []string `json:"bounds,omitempty"`
	Values   []string `json:"values,omitempty"`
	// When and RequiredWhen are in words.
	When         string           `json:"when,omitempty"`
	RequiredWhen string           `json:"required_when,omitempty"`
	Effect       manifest.Effect  `json:"effect"`
	Change       string           `json:"change"`
	Example      string           `json:"example,omitempty"`
	Since        string           `json:"since,omitempty"`
	NotYet       []string         `json:"not_yet,omitempty"`
	Members      []string         `json:"members,omitempty"`
	Now          []manifest.Value `json:"now,omitempty"`
}

// explainKey explains one key. A manifest adds its value; whether there has to be one depends on whether the
// user named it.
func (c *cli) explainKey(path, file string, named bool) error {
	k, name, problem := manifest.Find(path)
	if problem != nil {
		hint := "pinnace explain --help; all keys: docs/specs/manifest/manifest-schema.md"
		if problem.Suggestion != "" {
			hint = "did you mean " + problem.Suggestion + "?"
		} else if problem.Fix != "" {
			hint = problem.Fix
		}
		return fail(exitInvalid, hint, "%s: %s", path, problem.Message)
	}
	m, err := c.manifestIfThere(file, named)
	if err != nil {
		return err
	}
	out := explainedKey{
		Key: strings.Replace(k.Path, "*", "NAME", 1), Type: k.Type.String(), Meaning: k.Doc, Required: k.Required,
		Default: k.DefaultText(), Bounds: k.BoundsText(), Values: k.Values, When: k.When.String(), RequiredWhen: k.RequiredWhen.String(),
		Effect: k.Effect, Change: k.Effect.Meaning(), Example: k.Example, Since: k.Since, NotYet: k.Pending,
	}
	for _, member := range k.Members() {
		out.Members = append(out.Members, strings.Replace(member.Path, "*", "NAME", 1))
	}
	if m != nil {
		out.Now = valuesOf(m, k, name)
	}
	if c.json {
		return c.printJSON(out)
	}
	return out.write(c.stdout, m, file)
}

// manifestIfThere reads the manifest beside which a key is explained. One that nobody named need not be there,
// and need not be valid.
func (c *cli) manifestIfThere(file string, named bool) (*manifest.Manifest, error) {
	if named {
		return c.parseManifest(file)
	}
	src, err := c.readManifest(file)
	if err != nil {
		return nil, nil //nolint:nilnil,nilerr // there is none, and none is needed
	}
	m, _ := manifest.Parse(src)
	return m, nil
}

// valuesOf picks the values of one key: with a name that is in the manifest, of that entry, else of all.
func valuesOf(m *manifest.Manifest, k manifest.Key, name string) []manifest.Value {
	var all, those []manifest.Value
	for _, v := range m.Values() {
		found, entry, problem := manifest.Find(v.Key)
		if problem != nil || found.Path != k.Path {
			continue
		}
		all = append(all, v)
		if entry == name {
			those = append(those, v)
		}
	}
	if len(those) > 0 {
		return those
	}
	return all
}

// write prints the explanation for a person.
func (e explainedKey) write(out io.Writer, m *manifest.Manifest, file string) error {
	fmt.Fprintf(out, "%s\n  %s\n\n", e.Key, e.Meaning)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(label, text string) {
		if text != "" {
			fmt.Fprintf(w, "  %s\t%s\n", label, text)
		}
	}
	row("type", e.Type)
	row("bounds", strings.Join(e.Bounds, "; "))
	if e.Required {
		row("required", "always")
	}
	row("required", e.RequiredWhen)
	row("default", e.Default)
	row("only", e.When)
	row("example", e.Example)
	row("a change", string(e.Effect)+": "+e.Change)
	row("since", e.Since)
	if len(e.NotYet) > 0 {
		what := strings.TrimPrefix(strings.Join(e.NotYet, ", ")+": ", "*: ")
		row("not yet", what+"valid, but this version of Pinnace cannot run it yet")
	}
	for i, member := range e.Members {
		row([]string{"keys", ""}[min(i, 1)], member)
	}
	for i, v := range e.Now {
		row([]string{"now", ""}[min(i, 1)], fmt.Sprintf("%s = %s, %s", v.Key, shownValue(v), shownSource(v, m, file)))
	}
	return w.Flush()
}
