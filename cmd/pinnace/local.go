package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

// localFlags are what the user says about a run without a server.
type localFlags struct {
	file, image, name string
	vars, varsFiles   []string
	secrets, publish  []string
	mounts            []string
	fresh, once       bool
	before, times     bool

	dirs directories
	role agentRole
}

// localSpec is what is to run, as far as that is known from the command line and the files that it names.
type localSpec struct {
	name     string
	manifest *manifest.Manifest
	vars     map[string]string
	secrets  map[string]map[string][]byte
	publish  map[string]int // ports that were chosen, by name
	image    *registry.Image
	platform registry.Platform
}

func (c *cli) newLocal() *cobra.Command {
	var level logFlag
	flags := localFlags{role: agentRole{registries: c.registryOptions}}
	cmd := &cobra.Command{
		Use:   "local --image REFERENCE [-f FILE]",
		Short: "Run an image and its manifest on this machine, without a server",
		Long: `Local boots one instance of an image, with its manifest, as a host would: the same root file
system, the same init, the same supervision. There is no server; what it prints is the stages of
the start, and then what the process writes: its stdout to stdout, its stderr to stderr.

Each port of the manifest answers on 127.0.0.1: at its public_port if that is free, else at its own
number, else at one that is; --publish chooses. Ports with expose = "none" are left out unless
--publish names them.

Ctrl-C stops it as the manifest's [stop] says, without waiting for connections to end; a second
one kills it. When the command itself is killed, the microVM runs on: the next start under the same
name ends it first, and so does "pinnace local rm".

Volumes are kept below DATA_DIR/local/NAME/volumes from one run to the next. Folders of this machine
never come into a microVM: bring what it needs in the image, in variables or in secrets.

What decides between instances or is up to an environment has no effect here, and a note says so:
most of [rollout], and edge = "sni", whose port is passed on as it is.

Exit status: 0 it was stopped or its work is done, 2 invalid input, 3 not allowed, 4 the image or a
volume is missing, 5 it runs already or a port is taken, 6 the registry is not reachable, 8 it failed
and is not started again.`,
		Example: `  pinnace local --image 127.0.0.1:5000/hello:v1
  pinnace local --image registry.example.com/shop/api:v3 -f api.toml --var PUBLIC_URL=http://localhost:8080
  pinnace local --image 127.0.0.1:5000/db:v1 --secret db=db.env --publish pg=15432
  pinnace local exec -it hello -- sh             in another terminal
  pinnace local ls                               what earlier runs have left`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags.role.log, flags.role.logLevel = c.logger("agent", level.level), level.level
			if err := noCores(); err != nil {
				return err
			}
			spec, err := c.readLocal(&flags)
			if err != nil {
				return err
			}
			if err := needRoot(); err != nil {
				return err
			}
			return c.runLocal(cmd.Context(), &flags, spec)
		},
	}
	cmd.Flags().StringVar(&flags.image, "image", "", "the image in its registry (required); a tag is resolved once")
	cmd.Flags().StringVarP(&flags.file, "file", "f", manifestName, "the manifest")
	cmd.Flags().StringVar(&flags.name, "name", "", "what it is known by on this machine (default: the manifest's name); its volumes belong to it")
	cmd.Flags().StringArrayVar(&flags.vars, "var", nil, "a variable that the manifest asks for, KEY=VALUE; may be repeated")
	cmd.Flags().StringArrayVar(&flags.varsFiles, "vars-file", nil, "file with variables, KEY=VALUE in each line; may be repeated")
	cmd.Flags().StringArrayVar(&flags.secrets, "secret", nil, "a bundle that the manifest asks for, BUNDLE=PATH: a file of KEY=VALUE lines, of JSON, or a folder with a file for each key; may be repeated")
	cmd.Flags().StringArrayVar(&flags.publish, "publish", nil, "where on 127.0.0.1 a port of the manifest answers, NAME=PORT; may be repeated")
	cmd.Flags().BoolVar(&flags.fresh, "fresh", false, "begin with new volumes: what is in those of earlier runs is lost")
	cmd.Flags().BoolVar(&flags.before, "before", false, "run the manifest's rollout.before first, as a deployment would")
	cmd.Flags().BoolVar(&flags.once, "no-restart", false, "do not start it again when it ends, whatever the manifest says")
	cmd.Flags().BoolVarP(&flags.times, "timestamps", "t", false, "print when each line was written")
	cmd.Flags().StringArrayVarP(&flags.mounts, "volume", "v", nil, "")
	_ = cmd.Flags().MarkHidden("volume") // for an answer to those who try it
	flags.role.addMachines(cmd)
	cmd.Flags().Uint32Var(&flags.role.firstUID, "first-uid", 720000, "the first of the user ids that VMs run under")
	level.add(cmd, slog.LevelError)
	for flag, names := range map[string]func(*manifest.Manifest) []string{
		"var":     func(m *manifest.Manifest) []string { return m.Vars },
		"secret":  func(m *manifest.Manifest) []string { return sortedKeys(m.Secrets) },
		"publish": func(m *manifest.Manifest) []string { return sortedKeys(m.Ports) },
	} {
		// It fails only when there is no such flag, and there is.
		_ = cmd.RegisterFlagCompletionFunc(flag, c.completeFromManifest(&flags.file, names))
	}
	cmd.AddCommand(c.newLocalList(), c.newLocalExec(), c.newLocalRemove())
	flags.dirs.add(cmd)
	return cmd
}

// completeFromManifest offers names that the manifest has, for what is to follow each of them.
func (c *cli) completeFromManifest(file *string, names func(*manifest.Manifest) []string) completion {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var words []cobra.Completion
		if *file == "-" {
			return nil, cobra.ShellCompDirectiveNoFileComp // it is for the command to read
		}
		if src, err := c.readManifest(*file); err == nil {
			if m, _ := manifest.Parse(src); m != nil {
				for _, name := range names(m) {
					words = append(words, name+"=")
				}
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// readLocal reads everything that can be known before anything starts, and says all that is wrong with it at once.
func (c *cli) readLocal(f *localFlags) (*localSpec, error) {
	if f.image == "" {
		return nil, fail(exitInvalid, "pinnace local --image registry.example.com/name:tag -f "+f.file,
			"which image? The manifest says how to run one, not which")
	}
	if len(f.mounts) > 0 {
		return nil, fail(exitInvalid, "declare a volume in the manifest, [volumes.NAME], and keep files that the process reads in the image, in --var or in --secret",
			"--volume %s: folders of this machine are never mounted into a microVM", printable(f.mounts[0]))
	}
	src, err := c.readManifest(f.file)
	if err != nil {
		return nil, err
	}
	m, problems := manifest.Parse(src)
	spec := &localSpec{manifest: m}
	if m != nil {
		problems = append(problems, cannotRunLocally(m)...)
		missing, err := spec.readInputs(c, f)
		if err != nil {
			return nil, err
		}
		problems = append(problems, missing...)
	}
	if c.json && problems.HasErrors() {
		if err := c.printJSON(checkResult{File: f.file, Problems: problems}); err != nil {
			return nil, err
		}
	}
	if !c.json && !c.quiet && len(problems) > 0 {
		c.showProblems(f.file, src, problems)
	}
	if problems.HasErrors() {
		return nil, errReported{exitInvalid}
	}
	if f.before && m.Rollout.Before == nil {
		return nil, fail(exitInvalid, "", "--before: the manifest has no [rollout.before]")
	}
	spec.name = m.Name
	if f.name != "" {
		spec.name = f.name
	}
	if !localName.MatchString(spec.name) {
		return nil, fail(exitInvalid, "", "--name %q: want 1 to 40 of a-z, 0-9 and -, a letter first", f.name)
	}
	return spec, nil
}

// leftToLocal tells whether local can do what this version's servers cannot have done yet, or does without it, as
// ignoredLocally says.
func leftToLocal(p manifest.Problem) bool {
	for _, pattern := range []string{"vars", "secrets.*", "volumes.*", "rollout", "rollout.*", "ports.*.edge"} {
		if ok, err := filepath.Match(pattern, p.Key); ok && err == nil {
			return true
		}
	}
	return false
}

// cannotRunLocally says what of a manifest this version cannot run at all.
func cannotRunLocally(m *manifest.Manifest) manifest.Problems {
	return slices.DeleteFunc(m.Unsupported(), leftToLocal)
}

// ignoredLocally says what of a manifest has no effect here.
func ignoredLocally(m *manifest.Manifest, before bool) []string {
	var notes []string
	if s := m.Rollout.Strategy; s != manifest.StrategyRolling {
		notes = append(notes, fmt.Sprintf("rollout.strategy = %q has no effect here: there is one instance", s))
	}
	if m.Rollout.Before != nil && !before {
		notes = append(notes, "rollout.before is not run, because this is no deployment; --before runs it first")
	}
	for _, name := range sortedKeys(m.Ports) {
		if m.Ports[name].Edge == manifest.EdgeSNI {
			notes = append(notes, fmt.Sprintf("ports.%s.edge = \"sni\" has no effect here: the port is passed on as it is, whatever name a client asks for", name))
		}
	}
	return notes
}

// releaseID is the id that a server would give it, and its hosts know it by.
func (s *localSpec) releaseID() release.ID {
	return release.New(release.ImageDigest(s.image.Digest), s.manifest).ID()
}
