package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newVolumes() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volumes",
		Short: "List volumes, grow, copy, export and import them",
		Long: `A volume is a disk that outlives the instances of an app: on one host, for one ordinal. It is made when
an instance first needs it, and bound to that host from then on. A VOLUME is named by its id, the
beginning of it, or by what it is for: db/0/data, or db/0 where that has only one.`,
	}
	cmd.AddCommand(c.newVolumesList(), c.newVolumesGrow(), c.newVolumesSnapshot(), c.newVolumesExport(), c.newVolumesImport(), c.newVolumesDetach(), c.newVolumesDelete())
	return cmd
}

func (c *cli) newVolumesList() *cobra.Command {
	return &cobra.Command{
		Use:     "list [APP]",
		Short:   "List the volumes of an environment and their snapshots",
		Example: "  pinnace volumes list\n  pinnace volumes list db --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.ListVolumes(cmd.Context(), connect.NewRequest(&pinnacev1.ListVolumesRequest{Environment: env, App: strings.Join(args, "")}))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "VOLUME\tFOR\tHOST\tSTATE\tSIZE\tUSED\tON DISK\tINSTANCE\tSNAPSHOTS", func(w io.Writer) {
				for _, v := range res.Msg.Volumes {
					used, disk := "-", "-"
					if on := v.OnHost; on != nil {
						if disk = sizeText(on.AllocatedBytes); on.UsedBytes >= 0 {
							used = sizeText(on.UsedBytes)
						}
					}
					var snapshots []string
					for _, s := range v.Snapshots {
						snapshots = append(snapshots, s.Name)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(v.Id), printable(volumePlace(v)), printable(v.Host), volumeState(v),
						sizeText(v.SizeBytes), used, disk, printable(dash(v.Instance)), printable(dash(strings.Join(snapshots, ","))))
				}
			})
		},
	}
}

func volumePlace(v *pinnacev1.Volume) string {
	return fmt.Sprintf("%s/%d/%s", v.App, v.Ordinal, v.Name)
}

// volumeState says what a volume is, and what is not as it should be.
func volumeState(v *pinnacev1.Volume) string {
	state := printable(v.State)
	switch on := v.OnHost; {
	case v.Away:
		state += ", host away"
	case on == nil:
		state += ", not made yet"
	case on.SizeBytes < v.SizeBytes:
		state += ", grows at the next start"
	}
	return state
}

// sizeText is a size for people, with at most one decimal.
func sizeText(bytes int64) string {
	f := sizeFlag{bytes: bytes}
	if text := f.String(); bytes < 1<<10 || len(text) <= len("1023TiB") {
		return text
	}
	for _, unit := range []struct {
		name   string
		factor int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}} {
		if bytes >= unit.factor {
			return fmt.Sprintf("%.1f%s", float64(bytes)/float64(unit.factor), unit.name)
		}
	}
	return fmt.Sprintf("%.1fKiB", float64(bytes)/(1<<10))
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func (c *cli) newVolumesGrow() *cobra.Command {
	return &cobra.Command{
		Use:   "grow VOLUME SIZE",
		Short: "Make a volume larger",
		Long: `Grow makes a volume larger from the next start of its instance on, with pinnace restart at the latest.
Volumes never shrink. A release whose manifest asks for more has its volumes grow by itself.`,
		Example: "  pinnace volumes grow db/0 20GiB\n  pinnace restart db",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var size sizeFlag
			if err := size.Set(args[1]); err != nil {
				return fail(exitInvalid, "pinnace volumes grow "+args[0]+" 20GiB", "%w", err)
			}
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.GrowVolume(cmd.Context(), connect.NewRequest(&pinnacev1.GrowVolumeRequest{
				Environment: env, Volume: args[0], SizeBytes: size.bytes, IdempotencyKey: newKey(),
			}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			v := res.Msg.Volume
			switch {
			case res.Msg.Unchanged:
				c.say("nothing to do: volume %s is to be %s large already", v.Id, sizeText(v.SizeBytes))
			case v.Instance != "":
				c.say("volume %s becomes %s large when %s starts next: pinnace restart %s", v.Id, sizeText(v.SizeBytes), volumePlace(v), v.App)
			default:
				c.say("volume %s becomes %s large when it is used next", v.Id, sizeText(v.SizeBytes))
			}
			return nil
		},
	}
}

func (c *cli) newVolumesDetach() *cobra.Command {
	return &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Take a volume away from its app",
		Long: `Detach takes a volume away from its app, of which nothing may run with it. It stays on its host with all
that is in it, to be exported or deleted; the app gets a new one when it needs it, which may be on
another host. That is also the way on for an app whose host is away and will not come back soon.`,
		Example: "  pinnace stop db\n  pinnace volumes detach db/0/data",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.DetachVolume(cmd.Context(), connect.NewRequest(&pinnacev1.DetachVolumeRequest{Environment: env, Volume: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("volume %s is detached from %s, and stays on host %s", res.Msg.Volume.GetId(), volumePlace(res.Msg.Volume), res.Msg.Volume.GetHost())
			return nil
		},
	}
}

func (c *cli) newVolumesDelete() *cobra.Command {
	var snapshot, confirm string
	cmd := &cobra.Command{
		Use:   "delete VOLUME",
		Short: "Remove a volume that is detached, or a snapshot",
		Long: `Delete removes a volume that is detached, with its snapshots, now or when its host is back; it asks for
its id. With --snapshot it removes one snapshot, of any volume.`,
		Example: "  pinnace volumes delete vol-0123456789ab\n  pinnace volumes delete db/0 --snapshot before-upgrade",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			if snapshot != "" {
				res, err := client.DeleteSnapshot(cmd.Context(), connect.NewRequest(&pinnacev1.DeleteSnapshotRequest{Environment: env, Volume: args[0], Snapshot: snapshot, IdempotencyKey: newKey()}))
				if err != nil {
					return err
				}
				if c.json {
					return c.printProto(res.Msg)
				}
				c.say("deleted snapshot %s of volume %s", snapshot, res.Msg.Volume.GetId())
				return nil
			}
			if err := c.confirm("this removes volume "+args[0]+" with all that is in it, and its snapshots", args[0], confirm); err != nil {
				return err
			}
			res, err := client.DeleteVolume(cmd.Context(), connect.NewRequest(&pinnacev1.DeleteVolumeRequest{Environment: env, Volume: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("volume %s is being removed", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "the snapshot to remove, and not the volume")
	cmd.Flags().StringVar(&confirm, "confirm", "", "the volume's id, in place of being asked for it")
	return cmd
}

func (c *cli) newVolumesSnapshot() *cobra.Command {
	return &cobra.Command{
		Use:   "snapshot VOLUME [NAME]",
		Short: "Copy a volume on its host",
		Long: `Snapshot makes a copy of a volume under a name of its own, on the same host. Whoever writes to the volume
waits meanwhile: a moment where the host's file system shares blocks (XFS, Btrfs), else at most a
minute, after which no copy is kept; stop the instance first then. Without a NAME it is the time.`,
		Example: "  pinnace volumes snapshot db/0 before-upgrade",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			name := time.Now().UTC().Format("20060102-150405")
			if len(args) == 2 {
				name = args[1]
			}
			end := c.progress(cmd.Context(), "copying "+args[0])
			res, err := client.SnapshotVolume(cmd.Context(), connect.NewRequest(&pinnacev1.SnapshotVolumeRequest{Environment: env, Volume: args[0], Snapshot: name, IdempotencyKey: newKey()}))
			end()
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.print("%s", name)
			c.say("volume %s has snapshot %s", res.Msg.Volume.GetId(), name)
			return nil
		},
	}
}

// volumes are the volumes of the environment.
func (c *cli) volumes(ctx context.Context) []cobra.Completion {
	client, env, err := c.clientIn()
	if err != nil {
		return nil
	}
	res, err := client.ListVolumes(ctx, connect.NewRequest(&pinnacev1.ListVolumesRequest{Environment: env}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, v := range res.Msg.Volumes {
		words = append(words, cobra.CompletionWithDesc(v.Id, volumePlace(v)))
	}
	return words
}
