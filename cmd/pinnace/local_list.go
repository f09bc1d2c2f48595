package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/volume"
)

// localThing is what there is of a name on this machine.
type localThing struct {
	Name string `json:"name"`
	// State is running, left (by a run that was killed; it may run still) or stopped.
	State   string        `json:"state"`
	Volumes []localVolume `json:"volumes"`
}

type localVolume struct {
	Name      string `json:"name"`
	Size      int64  `json:"size_bytes"`
	Allocated int64  `json:"allocated_bytes"`
}

func (c *cli) newLocalList() *cobra.Command {
	var dirs directories
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List what runs locally, and the volumes that earlier runs have left",
		Example: "  pinnace local ls",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			things, err := listLocal(dirs)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(things)
			}
			if len(things) == 0 {
				c.say("nothing has run locally")
				return nil
			}
			w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tSTATE\tVOLUMES")
			for _, t := range things {
				fmt.Fprintf(w, "%s\t%s\t%s\n", t.Name, t.State, t.volumes())
			}
			return w.Flush()
		},
	}
	dirs.add(cmd)
	return cmd
}

// volumes says in one cell which volumes there are.
func (t localThing) volumes() string {
	var texts []string
	for _, v := range t.Volumes {
		texts = append(texts, fmt.Sprintf("%s (%s of %s)", printable(v.Name), byteSize(v.Allocated), byteSize(v.Size)))
	}
	if texts == nil {
		return "-"
	}
	return strings.Join(texts, ", ")
}

// listLocal looks at every name.
func listLocal(dirs directories) ([]localThing, error) {
	entries, err := os.ReadDir(localData(dirs, ""))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []localThing{}, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fail(exitDenied, "run it with sudo", "%w", err)
	case err != nil:
		return nil, err
	}
	things := []localThing{}
	for _, e := range entries {
		if !e.IsDir() || !localName.MatchString(e.Name()) {
			continue
		}
		t := localThing{Name: e.Name(), State: "stopped", Volumes: []localVolume{}}
		place := localPlace{name: e.Name(), dirs: directories{data: localData(dirs, e.Name()), run: localRun(dirs, e.Name())}}
		held, err := durable.Lock(place.dirs.data)
		switch {
		case errors.Is(err, durable.ErrLocked):
			t.State = "running"
		case err != nil:
			return nil, err
		case place.left():
			t.State = "left"
		}
		if err == nil {
			if err := held.Unlock(); err != nil {
				return nil, err
			}
		}
		if t.Volumes, err = localVolumes(place.volumes()); err != nil {
			return nil, err
		}
		things = append(things, t)
	}
	return things, nil
}

// localVolumes are the volumes in dir, which need not be there.
func localVolumes(dir string) ([]localVolume, error) {
	volumes := []localVolume{}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return volumes, nil
	}
	store, err := volume.Open(dir)
	if err != nil {
		return nil, err
	}
	infos, err := store.List()
	for _, i := range infos {
		volumes = append(volumes, localVolume{i.ID, i.Size, i.Allocated})
	}
	return volumes, err
}

// removeVolumes removes all volumes in dir, which need not be there.
func removeVolumes(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	store, err := volume.Open(dir)
	if err != nil {
		return err
	}
	infos, err := store.List()
	for _, i := range infos {
		err = errors.Join(err, store.Remove(i.ID))
	}
	return err
}

func (c *cli) newLocalRemove() *cobra.Command {
	var dirs directories
	var withVolumes bool
	role := agentRole{registries: c.registryOptions}
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove what local runs of a name have left, its volumes included",
		Long: `Rm ends what a run that was killed has left, if there is something, and removes all that is kept
under a name. What is in its volumes is lost, so those that have some are removed with --volumes only.
Images stay, as those of the machine's agent do: see "pinnace image".`,
		Example: "  pinnace local rm hello\n  pinnace local rm db --volumes",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: completeLocal(&dirs),
		RunE: func(cmd *cobra.Command, args []string) error {
			role.log = c.logger("agent", 8)
			return c.removeLocal(cmd.Context(), dirs, &role, args[0], withVolumes)
		},
	}
	cmd.Flags().BoolVar(&withVolumes, "volumes", false, "remove its volumes, too, and what is in them")
	role.addMachines(cmd)
	cmd.Flags().Uint32Var(&role.firstUID, "first-uid", 720000, "the first of the user ids that VMs run under")
	dirs.add(cmd)
	return cmd
}

// completeLocal offers the names that there are.
func completeLocal(dirs *directories) completion {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var words []cobra.Completion
		if things, err := listLocal(*dirs); err == nil && len(args) == 0 {
			for _, t := range things {
				words = append(words, cobra.CompletionWithDesc(t.Name, t.State))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

func (c *cli) removeLocal(ctx context.Context, dirs directories, role *agentRole, name string, withVolumes bool) (err error) {
	_, statErr := os.Stat(localData(dirs, name))
	if errors.Is(statErr, fs.ErrNotExist) || !localName.MatchString(name) {
		return fail(exitNotFound, "pinnace local ls lists what there is", "nothing of the name %q has run locally", printable(name))
	}
	if err := needRoot(); err != nil {
		return err
	}
	volumes, err := localVolumes(filepath.Join(localData(dirs, name), "volumes"))
	if err != nil {
		return err
	}
	if len(volumes) > 0 && !withVolumes {
		return fail(exitConflict, "--volumes removes them, too", "%s has volumes: %s", name, localThing{Volumes: volumes}.volumes())
	}
	stop := listenForStops(ctx)
	defer stop.end()
	place, err := takeLocal(stop.ctx, dirs, name, role.firstUID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.release()) }()
	if place.left() {
		store, err := openSharedStore(dirs.data)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		host := newLocalHost(c.newLocalView(false), role, place, store)
		if err := host.start(stop.ctx, stop); err != nil {
			return err
		}
		if err := errors.Join(host.clearUp(), host.end()); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(place.dirs.run), os.RemoveAll(place.dirs.data))
}
