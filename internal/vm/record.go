package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// RecordName is the name of a machine's record in its Dir.
const RecordName = "machine.json"

// A Record identifies a machine beyond doubt, for another process of this program, now or after a crash. It names the
// process that holds the machine's monitor, a child of it (package holder): a process id alone is used again by the
// kernel, the id together with the time at which the process started in this boot of the host is not.
//
// It is durable before the monitor is started, so that there is no monitor without one.
type Record struct {
	ID     string `json:"id"`
	Driver string `json:"driver"`
	// PID is the process id of the holder. The monitor's is in the holder's result file.
	PID int `json:"holder"`
	// StartTicks is when the holder started, in the kernel's clock ticks since boot.
	StartTicks uint64 `json:"start_ticks"`
	// BootID is the host's /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
	Dir    string `json:"dir"`
	// Cgroup and Console are those of the Spec.
	Cgroup  string `json:"cgroup,omitempty"`
	Console string `json:"console,omitempty"`
	// UID is the identity of the monitor.
	UID uint32 `json:"uid"`
	// Jail is the directory that a driver has made for the monitor elsewhere, or empty.
	Jail      string    `json:"jail,omitempty"`
	StartedAt time.Time `json:"started_at"`
}

// NewRecord describes the machine of spec that the holder pid, a child of the caller that is not reaped yet, is to run.
func NewRecord(driver string, spec Spec, pid int, startedAt time.Time) (Record, error) {
	ticks, err := startTicks(pid)
	if err != nil {
		return Record{}, err
	}
	boot, err := HostBootID()
	if err != nil {
		return Record{}, err
	}
	return Record{
		ID: spec.ID, Driver: driver, PID: pid, StartTicks: ticks, BootID: boot,
		Dir: spec.Dir, Cgroup: spec.Cgroup, Console: spec.Console, UID: spec.UID, StartedAt: startedAt,
	}, nil
}

// ReadRecord reads the record in dir. The error wraps fs.ErrNotExist when there is none.
func ReadRecord(dir string) (Record, error) {
	path := filepath.Join(dir, RecordName)
	b, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("read machine record %s: %w", path, err)
	}
	// What else the record says is acted on there.
	if filepath.Clean(r.Dir) != filepath.Clean(dir) {
		return Record{}, fmt.Errorf("read machine record %s: it is of the directory %q", path, r.Dir)
	}
	return r, nil
}

// Write puts the record into its Dir, durably.
func (r Record) Write() error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(r.Dir, RecordName), append(b, '\n'), 0o600)
}

// RemoveRecord removes the record and the holder's result file from dir. What is not there is no error.
func RemoveRecord(dir string) error {
	for _, name := range []string{RecordName, holder.ResultName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// HostBootID tells this boot of the host from every other.
func HostBootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Sweep ends the machines that an earlier process of this program left behind: those with a record in a
// directory directly below root. It returns the records of those that it killed. It must not run while somebody starts
// machines below root.
func Sweep(ctx context.Context, root string) ([]Record, error) {
	paths, err := filepath.Glob(filepath.Join(root, "*", RecordName))
	if err != nil {
		return nil, err
	}
	var killed []Record
	var errs []error
	for _, path := range paths {
		r, err := ReadRecord(filepath.Dir(path))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		was, err := r.End(ctx)
		if err != nil {
			errs = append(errs, err)
		}
		if was {
			killed = append(killed, r)
		}
	}
	return killed, errors.Join(errs...)
}

// Clear ends the machines of the directories that match pattern, whose owners have ended, and removes the directories.
func Clear(ctx context.Context, pattern string) error {
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		r, err := ReadRecord(dir)
		if err == nil {
			_, err = r.End(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// End ends the machine of a record that nobody has adopted, and removes its cgroup and the record once its processes
// are proven gone. It tells whether there was anything to kill.
func (r Record) End(ctx context.Context) (bool, error) {
	was, err := KillStale(ctx, r)
	if err != nil {
		return was, fmt.Errorf("end machine %s: %w", r.ID, err)
	}
	if err := removeCgroup(ctx, r.Cgroup); err != nil {
		return was, fmt.Errorf("clean up after machine %s: %w", r.ID, err)
	}
	return was, RemoveRecord(r.Dir)
}

// removeCgroup ends what is in a machine's cgroup, which is the machine's only, and removes it.
func removeCgroup(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	hierarchy, err := cgroup.Find()
	if errors.Is(err, cgroup.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(hierarchy.Kill(ctx, name), hierarchy.Remove(name))
}

// KillStale ends the monitor and the holder that r identifies and waits until they are gone. It tells whether there was
// one to kill; a process that only has the same id is left alone.
func KillStale(ctx context.Context, r Record) (bool, error) {
	holder, err := r.Holder()
	if holder == nil || err != nil {
		return false, err
	}
	defer holder.Close()
	// A zombie has only to be reaped by its parent.
	if gone, err := holder.gone(0); gone || err != nil {
		return false, err
	}
	monitor, err := r.Monitor(holder)
	if err != nil {
		return false, err
	}
	if monitor != nil {
		defer monitor.Close()
		if err := monitor.Kill(); err != nil {
			return true, err
		}
		if err := monitor.Wait(ctx); err != nil {
			return true, err
		}
	}
	if err := holder.Kill(); err != nil {
		return true, err
	}
	return true, holder.Wait(ctx)
}

// Holder opens the process that holds the machine's monitor. It returns nil when that is proven to be gone.
func (r Record) Holder() (*Process, error) {
	boot, err := HostBootID()
	if err != nil {
		return nil, err
	}
	if r.PID <= 1 || r.BootID != boot {
		return nil, nil
	}
	return openProcess(r.PID, func() (bool, error) {
		ticks, err := startTicks(r.PID)
		return ticks == r.StartTicks, err
	})
}

// Monitor opens the machine's monitor, which is a child of the holder. It returns nil when there is none, or none yet.
func (r Record) Monitor(of *Process) (*Process, error) {
	pid := r.Result().PID
	if pid == 0 {
		return nil, nil
	}
	return openProcess(pid, func() (bool, error) {
		parent, err := parentOf(pid)
		if err != nil || parent != r.PID {
			return false, err
		}
		// A holder that lives has not reaped its child, so that no other process has the id.
		gone, err := of.gone(0)
		return !gone, err
	})
}

// Result is what the holder has written down.
func (r Record) Result() holder.Result {
	b, err := os.ReadFile(r.ResultPath())
	if err != nil {
		return holder.Result{}
	}
	return holder.ParseResult(string(b))
}

// ResultPath is the holder's result file.
func (r Record) ResultPath() string { return filepath.Join(r.Dir, holder.ResultName) }
