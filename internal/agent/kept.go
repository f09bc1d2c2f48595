package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
)

// keptName is the name of an attempt's record in its directory.
const keptName = "attempt.json"

// kept is what another agent has to know of an attempt to take it over. It lies beside the machine's own record, below
// RunDir: like the machine it does not survive the host. It is written before anything is made for the attempt, so that
// nothing exists that it does not name, and again whenever what it says changes.
type kept struct {
	Instance string `json:"instance"`
	Attempt  uint32 `json:"attempt"`
	UID      uint32 `json:"uid"`
	// Assignment, Release and Report are as they came and as they were reported last, in protojson. With them an agent
	// goes on without a server.
	Assignment json.RawMessage `json:"assignment"`
	Release    json.RawMessage `json:"release"`
	Report     json.RawMessage `json:"report"`
	// Nonce names the boot, and Protocol is the version that its init speaks; empty before init's hello.
	Nonce    string `json:"nonce,omitempty"`
	Protocol int    `json:"protocol,omitempty"`
	// Boots is what its machine runs, in protojson; absent before there is one.
	Boots json.RawMessage `json:"boots,omitempty"`
	// BootedAt and StartedAt are when init said hello and when the workload ran.
	BootedAt  time.Time `json:"booted_at"`
	StartedAt time.Time `json:"started_at"`
	// Route is what connections it gets.
	Route routeState `json:"route"`
	// Ending is why it is being ended, if it is.
	Ending *ending `json:"ending,omitempty"`
	// End is how it ended, in protojson, once that is known.
	End json.RawMessage `json:"end,omitempty"`
}

// ending says why the agent ends an attempt.
type ending struct {
	Kind  string    `json:"kind"`
	Why   string    `json:"why,omitempty"`
	Since time.Time `json:"since"`
	// Final tells that the instance is to end with it.
	Final bool `json:"final,omitempty"`
}

// The kinds of ending.
const (
	endingPlanned = "planned" // somebody asked for it
	endingDead    = "dead"    // health.live failed
	endingLate    = "late"    // not ready within boot_timeout
)

// keep makes what is known of the attempt durable.
func (t *attempt) keep() error {
	rec := kept{
		Instance: t.id, Attempt: t.number, UID: t.uid, Nonce: t.nonce, Protocol: t.protocol,
		BootedAt: t.bootedAt, StartedAt: t.startedAt, Route: t.routed, Ending: t.ending,
	}
	for _, part := range []struct {
		to   *json.RawMessage
		from proto.Message
	}{{&rec.Assignment, t.assigned()}, {&rec.Release, t.workload.release}, {&rec.Report, t.report()}} {
		b, err := protojson.Marshal(part.from)
		if err != nil {
			return fmt.Errorf("keep what is known of the attempt: %w", err)
		}
		*part.to = b
	}
	if t.boots != nil {
		b, err := protojson.Marshal(t.boots)
		if err != nil {
			return fmt.Errorf("keep what the attempt runs: %w", err)
		}
		rec.Boots = b
	}
	if t.end != nil {
		b, err := protojson.Marshal(t.end)
		if err != nil {
			return fmt.Errorf("keep how the attempt ended: %w", err)
		}
		rec.End = b
	}
	b, err := json.Marshal(rec)
	if err == nil {
		err = durable.WriteFile(filepath.Join(t.dir, keptName), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep what is known of the attempt: %w", err)
	}
	return nil
}

// keepOrSay is keep where the attempt goes on without: another agent would know less of it.
func (t *attempt) keepOrSay() {
	if t.dir == "" {
		return // there is nothing yet that could be taken over
	}
	if err := t.keep(); err != nil {
		t.log.Error("an agent that takes this attempt over would know less of it", "err", err)
	}
}

// readKept reads the record in an attempt's directory into an attempt of an instance, both new. The error wraps
// fs.ErrNotExist when there is none.
func (a *Agent) readKept(dir string) (*attempt, error) {
	path := filepath.Join(dir, keptName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rec kept
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var asg pinnacev1.Assignment
	var rel pinnacev1.AssignedRelease
	var report pinnacev1.InstanceReport
	// An agent of an earlier version leaves fields out, and one of a later version has fields that this one does not
	// know: both can be taken over from.
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	err = errors.Join(lenient.Unmarshal(rec.Assignment, &asg), lenient.Unmarshal(rec.Release, &rel), lenient.Unmarshal(rec.Report, &report))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	w, err := newWorkload(&asg, &rel)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if asg.Instance != rec.Instance || filepath.Base(dir) != fmt.Sprintf("%s.%d", rec.Instance, rec.Attempt) {
		return nil, fmt.Errorf("read %s: it is of attempt %d of %s", path, rec.Attempt, rec.Instance)
	}
	t := newAttempt(newInstance(a, &asg, w), rec.Attempt)
	t.adopted, t.dir, t.uid, t.nonce, t.protocol = true, dir, rec.UID, rec.Nonce, rec.Protocol
	t.bootedAt, t.startedAt, t.ending, t.routed = rec.BootedAt, rec.StartedAt, rec.Ending, rec.Route
	t.stages = report.Stages
	proto.Merge(&t.status, &report)
	if rec.Boots != nil {
		t.boots = &pinnacev1.Booted{}
		if err := lenient.Unmarshal(rec.Boots, t.boots); err != nil {
			return nil, fmt.Errorf("read what it runs in %s: %w", path, err)
		}
	}
	if rec.End != nil {
		t.keptEnd = &pinnacev1.Cause{}
		if err := lenient.Unmarshal(rec.End, t.keptEnd); err != nil {
			return nil, fmt.Errorf("read the end in %s: %w", path, err)
		}
	}
	return t, nil
}

// environmentsName is the file below RunDir with what the server said last of names, virtual addresses and other hosts.
// An agent that starts gives it to the proxy before it has heard of the server, so that no listener goes away meanwhile.
const environmentsName = "environments.json"

func (a *Agent) keepFleet(f fleet) error {
	b, err := protojson.Marshal(f.message())
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(a.RunDir, environmentsName), b, 0o600)
}

func (a *Agent) keptFleet() (fleet, error) {
	b, err := os.ReadFile(filepath.Join(a.RunDir, environmentsName))
	if err != nil {
		return fleet{}, err
	}
	var msg pinnacev1.WatchAssignmentsResponse
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &msg); err != nil {
		return fleet{}, fmt.Errorf("read %s: %w", environmentsName, err)
	}
	return fleetOf(&msg), nil
}
