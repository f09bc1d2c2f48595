package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/volume"
)

func (c *cli) newVolumesExport() *cobra.Command {
	var snapshot string
	cmd := &cobra.Command{
		Use:   "export VOLUME FILE",
		Short: "Write a volume, or a snapshot of it, to a file",
		Long: `Export writes the image of a volume to a file: an ext4 file system, sparse. A volume that is in use is
copied on its host first, as a snapshot is. The file gets its name when all of it has come and its
sha256 is right; that is printed, and sha256sum gives the same. A file that is there is not replaced.`,
		Example: "  pinnace volumes export db/0 db.ext4\n  pinnace volumes export db/0 db.ext4 --snapshot before-upgrade",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			if _, err := os.Lstat(args[1]); err == nil {
				return fail(exitConflict, "", "%s exists already", args[1])
			}
			stream, err := client.ExportVolume(cmd.Context(), connect.NewRequest(&pinnacev1.ExportVolumeRequest{Environment: env, Volume: args[0], Snapshot: snapshot, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			sum, size, err := c.saveImage(stream, args[1])
			if err = errors.Join(err, stream.Close()); err != nil {
				return err
			}
			if c.json {
				return c.printJSON(map[string]any{"file": args[1], "size_bytes": size, "sha256": hex.EncodeToString(sum)})
			}
			c.print("%x  %s", sum, args[1])
			return nil
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "the snapshot to write, and not the volume as it is now")
	return cmd
}

// saveImage writes the image that comes to path, whole or not at all.
func (c *cli) saveImage(stream *connect.ServerStreamForClient[pinnacev1.ExportVolumeResponse], path string) (sum []byte, size int64, err error) {
	var (
		w    *volume.ImageWriter
		seen transfer
		f    *os.File
	)
	defer func() {
		if f != nil && err != nil {
			err = errors.Join(err, durable.Discard(f))
		}
	}()
	for sum == nil && stream.Receive() {
		switch m := stream.Msg(); {
		case m.GetStart() != nil && w == nil:
			size = m.GetStart().SizeBytes
			if size < volume.MinSize || size > volume.MaxSize {
				return nil, 0, fail(exitInternal, "", "the server sends an image of %d bytes, which no volume has", size)
			}
			if f, err = durable.CreateTemp(dirOf(path), 0o600); err != nil {
				return nil, 0, err
			}
			if err := f.Truncate(size); err != nil {
				return nil, 0, err
			}
			w, seen = volume.NewImageWriter(f, size), transfer{cli: c, what: "written", all: m.GetStart().DataBytes}
		case m.GetData() != nil && w != nil:
			if err := w.Part(m.GetData().Offset, m.GetData().Data); err != nil {
				return nil, 0, err
			}
			seen.add(len(m.GetData().Data))
		case m.GetEnd() != nil && w != nil:
			if err := w.End(m.GetEnd().Sha256); err != nil {
				return nil, 0, err
			}
			sum = m.GetEnd().Sha256
		default:
			return nil, 0, fail(exitInternal, "", "the server sends what is no image")
		}
	}
	if err := stream.Err(); err != nil {
		return nil, 0, err
	}
	if sum == nil {
		return nil, 0, fail(exitUnreachable, "try again; nothing was written", "the image was cut off")
	}
	if err := unix.Access(path, unix.F_OK); err == nil {
		return nil, 0, fail(exitConflict, "", "%s exists already", path)
	}
	if err := durable.Commit(f, path); err != nil {
		return nil, 0, err
	}
	return sum, size, nil
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	} else if i == 0 {
		return "/"
	}
	return "."
}

// transfer says now and then how far a transfer is.
type transfer struct {
	cli       *cli
	what      string
	all, done int64
	said      time.Time
}

func (t *transfer) add(n int) {
	t.done += int64(n)
	if now := time.Now(); now.Sub(t.said) >= 2*time.Second {
		if !t.said.IsZero() {
			t.cli.say("%s %s of about %s", t.what, sizeText(t.done), sizeText(max(t.all, t.done)))
		}
		t.said = now
	}
}

func (c *cli) newVolumesImport() *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use:   "import APP/ORDINAL/NAME FILE",
		Short: "Make a volume of a file",
		Long: `Import makes a volume of the image of an ext4 file system, for an app and an ordinal that have none of the
name: before the first deployment, or after a detach. The volume is there when all of the image has
come to its host and its sha256 is right, or not at all. Without --host it is made where the other
volumes of the ordinal are, else where there are the fewest.`,
		Example: "  pinnace volumes import db/0/data db.ext4\n  pinnace deploy db",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			start, err := volumeArgument(args[0])
			if err != nil {
				return err
			}
			f, err := os.Open(args[1])
			if err != nil {
				return fail(exitInvalid, "", "%w", err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				return err
			}
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			start.Environment, start.Host, start.IdempotencyKey = env, host, newKey()
			start.Image = &pinnacev1.ImageStart{SizeBytes: st.Size(), DataBytes: st.Size()}
			v, err := c.sendImage(cmd.Context(), client, start, f)
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(v)
			}
			c.print("%s", v.Id)
			c.say("volume %s of %s is on host %s", v.Id, volumePlace(v), v.Host)
			return nil
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "the `host` to make it on")
	return cmd
}

func volumeArgument(arg string) (*pinnacev1.ImportStart, error) {
	parts := strings.Split(arg, "/")
	if len(parts) == 3 {
		if n, err := strconv.ParseUint(parts[1], 10, 16); err == nil {
			return &pinnacev1.ImportStart{App: parts[0], Ordinal: uint32(n), Name: parts[2]}, nil
		}
	}
	return nil, fail(exitInvalid, "pinnace volumes import db/0/data FILE", "%q does not say what the volume is for", arg)
}

// sendImage sends the file as the image of a new volume.
func (c *cli) sendImage(ctx context.Context, client pinnacev1connect.ControlServiceClient, start *pinnacev1.ImportStart, f *os.File) (*pinnacev1.Volume, error) {
	stream := client.ImportVolume(ctx)
	seen := transfer{cli: c, what: "sent", all: start.Image.SizeBytes}
	err := stream.Send(&pinnacev1.ImportVolumeRequest{Message: &pinnacev1.ImportVolumeRequest_Start{Start: start}})
	var sum [32]byte
	if err == nil {
		sum, err = volume.ReadImage(ctx, f, start.Image.SizeBytes, func(offset int64, part []byte) error {
			seen.add(len(part))
			return stream.Send(&pinnacev1.ImportVolumeRequest{Message: &pinnacev1.ImportVolumeRequest_Data{Data: &pinnacev1.ImageData{Offset: offset, Data: part}}})
		})
	}
	if err == nil {
		err = stream.Send(&pinnacev1.ImportVolumeRequest{Message: &pinnacev1.ImportVolumeRequest_End{End: &pinnacev1.ImageEnd{Sha256: sum[:]}}})
	}
	if err != nil && !errors.Is(err, io.EOF) {
		_, _ = stream.CloseAndReceive() // nothing comes of it
		return nil, fmt.Errorf("send the image: %w", err)
	}
	res, err := stream.CloseAndReceive() // which says why, when it was not taken to its end
	if err != nil {
		return nil, err
	}
	return res.Msg.Volume, nil
}
