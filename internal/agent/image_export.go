package agent

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// exportPrefix begins the names of the snapshots that exports are made of. The server gives none such a name.
const exportPrefix = "export-"

// openImage opens what is to be exported. A volume as it is now is copied first, so that whoever writes to it need not
// wait until somebody far away has read it all; the copy has no name any more when this returns.
func (a *Agent) openImage(ctx context.Context, task *pinnacev1.ExportTask, id string) (*os.File, int64, error) {
	if task.Snapshot != "" {
		return a.volumes.OpenSnapshot(task.Volume, task.Snapshot)
	}
	name := exportPrefix + id
	if err := a.SnapshotVolume(ctx, task.Volume, name); err != nil {
		return nil, 0, err
	}
	f, size, err := a.volumes.OpenSnapshot(task.Volume, name)
	if gone := a.volumes.RemoveSnapshot(task.Volume, name); gone != nil && err == nil {
		return nil, 0, errors.Join(gone, f.Close())
	}
	return f, size, err
}

// removeExports removes the copies for exports that an earlier agent was in the middle of.
func (a *Agent) removeExports() error {
	all, err := a.volumes.List()
	for _, v := range all {
		for _, s := range v.Snapshots {
			if strings.HasPrefix(s.Name, exportPrefix) {
				err = errors.Join(err, a.volumes.RemoveSnapshot(v.ID, s.Name))
			}
		}
	}
	return err
}

// dataBytes is what a file takes of the disk: about what is sent of it.
func dataBytes(f *os.File) int64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}
