package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
)

// record is what the agent keeps of an instance. It is written before an attempt begins, so that a number is
// never used twice and nobody takes the logs and events of two attempts for one another; and before a guest
// that has reported the last end may go, so that a job that is done is not run again by the next agent.
type record struct {
	Attempt uint32 `json:"attempt"`
	// Unborn tells that the attempt has no machine yet. One that stays so, because the agent ended, has been no attempt:
	// its number is used again.
	Unborn bool `json:"unborn,omitempty"`
	// End is why the instance ended for good, as protojson; absent while there can be another attempt.
	End json.RawMessage `json:"end,omitempty"`
}

// recordSuffix ends the names of records; before it comes the instance.
const recordSuffix = ".json"

// instanceName is what names of instances look like. They become names of files, cgroups and machines.
var instanceName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func (i *instance) recordPath() string {
	return filepath.Join(i.agent.instancesDir(), i.id+recordSuffix)
}

// loadRecord returns the record of the last attempt, number 0 for none, and how the instance ended if it has.
func (i *instance) loadRecord() (record, *pinnacev1.Cause, error) {
	b, err := os.ReadFile(i.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil, nil
	}
	if err != nil {
		return record{}, nil, err
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return record{}, nil, fmt.Errorf("read %s: %w", i.recordPath(), err)
	}
	if rec.End == nil {
		return rec, nil, nil
	}
	var end pinnacev1.Cause
	if err := protojson.Unmarshal(rec.End, &end); err != nil {
		return rec, nil, fmt.Errorf("read the end in %s: %w", i.recordPath(), err)
	}
	return rec, &end, nil
}

// keepRecord makes the number of an attempt durable, whether it has a machine and, when end is not nil, that it was the
// last one.
func (i *instance) keepRecord(number uint32, unborn bool, end *pinnacev1.Cause) error {
	rec := record{Attempt: number, Unborn: unborn}
	if end != nil {
		b, err := protojson.Marshal(end)
		if err != nil {
			return err
		}
		rec.End = b
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return durable.WriteFile(i.recordPath(), b, 0o600)
}

// forget removes what the agent keeps of an instance that is gone. Its logs stay for their time.
func (a *Agent) forget(i *instance) {
	if err := os.Remove(i.recordPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		i.log.Warn("remove the instance's record", "err", err)
	}
	if err := a.vault.remove(i.id); err != nil {
		i.log.Warn("remove the instance's sealed secrets", "err", err)
	}
	if err := a.keeper.release(context.Background(), i); err != nil {
		i.log.Warn("give up the instance's image", "err", err)
	}
}

// forgetOthers removes the records of instances that are not in wanted and do not run: they were taken away
// from this host while the agent was not there to see it.
func (a *Agent) forgetOthers(wanted map[string]bool) {
	gone := func(id string) bool { return !wanted[id] && !a.has(id) }
	if err := a.keeper.releaseIf(gone); err != nil {
		a.Log.Warn("give up the images of instances that are gone", "err", err)
	}
	if err := a.vault.removeIf(gone); err != nil {
		a.Log.Warn("remove the sealed secrets of instances that are gone", "err", err)
	}
	entries, err := os.ReadDir(a.instancesDir())
	if err != nil {
		a.Log.Warn("look for old records of instances", "err", err)
		return
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok || wanted[id] || a.has(id) {
			continue
		}
		if err := os.Remove(filepath.Join(a.instancesDir(), e.Name())); err != nil {
			a.Log.Warn("remove the record of an instance that is gone", "instance", id, "err", err)
		}
	}
}
