package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Event is one entry of the log as the fold sees it.
type Event struct {
	// Seq is gapless and starts at 1; it is what orders events.
	Seq uint64
	// At is when the event was appended. It is shown to people and times a rollout; it orders nothing.
	At          time.Time
	Actor       string
	Type        string
	TypeVersion uint16
	Payload     []byte
}

// Payload is one of the structs below. The bytes of an event are the JSON of its struct; they never change
// once they are stored, so a struct that needs another shape gets a new version beside the old one.
type Payload interface {
	// EventType and EventVersion are the log's type and type version of the payload.
	EventType() string
	EventVersion() uint16
	fold(s *State, e Event) error
}

// EnvironmentCreated makes an isolation domain.
type EnvironmentCreated struct {
	Name string `json:"name"`
}

// VarsChanged changes variables of an environment. Deployments have a copy of those that they run with, so that what
// runs changes by a deployment only.
type VarsChanged struct {
	Environment string            `json:"environment"`
	Set         map[string]string `json:"set,omitempty"`
	Unset       []string          `json:"unset,omitempty"`
	// Restored is the deployment whose variables a rollback restores, if that is what happens.
	Restored string `json:"restored,omitempty"`
}

// AppPlaced says which labels a host must have to be given instances of an app in an environment, in place of what was
// said before; none is any host. The app need not have been deployed.
type AppPlaced struct {
	Environment string            `json:"environment"`
	App         string            `json:"app"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// HostJoined makes a host known, or replaces what was known of it.
type HostJoined struct {
	Host         string            `json:"host"`
	Name         string            `json:"name"`
	Architecture string            `json:"architecture"`
	MemoryBytes  int64             `json:"memory_bytes"`
	CPUMilli     int64             `json:"cpu_milli"`
	DiskBytes    int64             `json:"disk_bytes"`
	Labels       map[string]string `json:"labels,omitempty"`
	Version      string            `json:"version"`
	Driver       string            `json:"driver"`
	Accelerator  string            `json:"accelerator"`
}

// HostDrainStarted says that a host is to become empty: it is given nothing, and what can run elsewhere leaves.
type HostDrainStarted struct {
	Host string `json:"host"`
}

// HostDrainEnded says that a host is given instances again.
type HostDrainEnded struct {
	Host string `json:"host"`
}

// HostRemoved says that a host is gone for good, with what was on it.
type HostRemoved struct {
	Host string `json:"host"`
	// Lost are the instances that the host had to itself: they had no successor elsewhere, because of their volumes or
	// because nobody waited for one.
	Lost []string `json:"lost,omitempty"`
}

// ReleaseCreated stores a release with everything that hosts need of it: the manifest as it was written and
// in canonical form, and the documents of the image for each architecture.
type ReleaseCreated struct {
	Release           string     `json:"release"`
	App               string     `json:"app"`
	Image             string     `json:"image"`
	ManifestHash      string     `json:"manifest_hash"`
	ManifestSource    string     `json:"manifest_source"`
	ManifestCanonical string     `json:"manifest_canonical"`
	Sources           []string   `json:"sources"`
	Platforms         []Platform `json:"platforms"`
}

// Platform holds the exact bytes of the image manifest and config of one architecture.
type Platform struct {
	Architecture   string `json:"architecture"`
	ManifestDigest string `json:"manifest_digest"`
	ImageManifest  []byte `json:"image_manifest"`
	ImageConfig    []byte `json:"image_config"`
}

// ReleaseSourced replaces the list of places where the image of a release can be found. It doesn't change
// what the release is.
type ReleaseSourced struct {
	Release string   `json:"release"`
	Sources []string `json:"sources"`
}

// DeploymentStarted puts a release into an environment, with the exact settings in force.
type DeploymentStarted struct {
	Deployment  string            `json:"deployment"`
	Environment string            `json:"environment"`
	App         string            `json:"app"`
	Kind        Kind              `json:"kind"`
	Release     string            `json:"release"`
	Count       int               `json:"count"`
	Vars        map[string]string `json:"vars,omitempty"`
	// Secrets are the versions of the bundles that the release's manifest names.
	Secrets map[string]uint64 `json:"secrets,omitempty"`
	// Previous is the deployment that is live; empty for the first one. It guards against a decision that
	// was made on an older state.
	Previous string `json:"previous,omitempty"`
	// Target is the deployment record that a rollback restores.
	Target string `json:"target,omitempty"`
}

// DeploymentPaused says that a deployment is to stay as it is until somebody resumes it or turns it back.
type DeploymentPaused struct {
	Deployment string `json:"deployment"`
}

// DeploymentResumed says that a paused deployment goes on.
type DeploymentResumed struct {
	Deployment string `json:"deployment"`
}

// DeploymentTurnedBack begins the way back to the previous deployment.
type DeploymentTurnedBack struct {
	Deployment string `json:"deployment"`
	Reason     string `json:"reason"`
}

// InstancesPlanned is one decision of scheduler and rollout: what starts where, and what stops.
type InstancesPlanned struct {
	// Deployment in whose course it was decided.
	Deployment string         `json:"deployment"`
	Start      []PlannedStart `json:"start,omitempty"`
	Stop       []string       `json:"stop,omitempty"`
}

// PlannedStart places one instance. Its deployment is the previous one when a rollout turns back.
type PlannedStart struct {
	Instance   string `json:"instance"`
	Ordinal    int    `json:"ordinal"`
	Host       string `json:"host"`
	Deployment string `json:"deployment"`
	Release    string `json:"release"`
	// Task marks the one-off of rollout.before, which serves nobody.
	Task bool `json:"task,omitempty"`
}

// DeploymentSwitched says that connections are led to the new instances of a blue-green deployment, and no longer
// to the previous ones.
type DeploymentSwitched struct {
	Deployment string `json:"deployment"`
}

// InstanceStarted says that the VM of an attempt was started, and from what.
type InstanceStarted struct {
	Instance string `json:"instance"`
	Attempt  uint32 `json:"attempt"`
	Booted   Booted `json:"booted"`
}

// Booted are the identities of everything that a VM was started from.
type Booted struct {
	ManifestHash        string   `json:"manifest_hash"`
	ImageManifestDigest string   `json:"image_manifest_digest"`
	DiffIDs             []string `json:"diff_ids"`
	RootfsSHA256        string   `json:"rootfs_sha256"`
	Converter           string   `json:"converter"`
	KernelSHA256        string   `json:"kernel_sha256"`
	KernelVersion       string   `json:"kernel_version"`
	InitramfsSHA256     string   `json:"initramfs_sha256"`
	Driver              string   `json:"driver"`
	DriverVersion       string   `json:"driver_version"`
	Accelerator         string   `json:"accelerator"`
}

// InstanceReady is the first time that an attempt was ready.
type InstanceReady struct {
	Instance string `json:"instance"`
	Attempt  uint32 `json:"attempt"`
}

// InstanceEnded is the end of an attempt, or of Count attempts in a row when an instance crash-loops; the
// cause is that of the last one. Count is 0 when the instance ended for good between two attempts or
// before the first.
type InstanceEnded struct {
	Instance string `json:"instance"`
	Attempt  uint32 `json:"attempt"`
	Count    uint32 `json:"count"`
	Cause    Cause  `json:"cause"`
	// Planned is true when the platform had asked for it, Final when there will be no other attempt.
	Planned bool `json:"planned"`
	Final   bool `json:"final"`
}

// Cause is why an attempt ended. Log lines are not in it: they may hold what must not be kept for ever.
type Cause struct {
	Kind   string `json:"kind"`
	Code   int32  `json:"code"`
	Signal string `json:"signal,omitempty"`
	Stage  string `json:"stage,omitempty"`
	Detail string `json:"detail,omitempty"`
	// UnixMilli is the host's clock at the end; 0 when it is not known.
	UnixMilli int64 `json:"unix_milli"`
}

// ExecRequested says that somebody wanted to run a command in an instance, which may change what it does without any
// deployment. Of the command only the program is in it: arguments hold passwords now and then, what is in the log stays
// for ever, and the hash of a short secret gives it away.
type ExecRequested struct {
	Instance  string `json:"instance"`
	Program   string `json:"program"`
	Arguments int    `json:"arguments"` // how many there were
	User      string `json:"user,omitempty"`
	Terminal  bool   `json:"terminal,omitempty"`
}

// DeploymentFinished ends a deployment.
type DeploymentFinished struct {
	Deployment string          `json:"deployment"`
	Outcome    DeploymentState `json:"outcome"`
	Reason     string          `json:"reason,omitempty"`
}

// Types of the events, all in version 1.
func (*EnvironmentCreated) EventType() string   { return "environment.created" }
func (*VarsChanged) EventType() string          { return "environment.vars-changed" }
func (*AppPlaced) EventType() string            { return "app.placed" }
func (*HostJoined) EventType() string           { return "host.joined" }
func (*HostDrainStarted) EventType() string     { return "host.drain-started" }
func (*HostDrainEnded) EventType() string       { return "host.drain-ended" }
func (*HostRemoved) EventType() string          { return "host.removed" }
func (*ReleaseCreated) EventType() string       { return "release.created" }
func (*ReleaseSourced) EventType() string       { return "release.sourced" }
func (*DeploymentStarted) EventType() string    { return "deployment.started" }
func (*DeploymentPaused) EventType() string     { return "deployment.paused" }
func (*DeploymentResumed) EventType() string    { return "deployment.resumed" }
func (*DeploymentTurnedBack) EventType() string { return "deployment.turned-back" }
func (*DeploymentSwitched) EventType() string   { return "deployment.switched" }
func (*DeploymentFinished) EventType() string   { return "deployment.finished" }
func (*InstancesPlanned) EventType() string     { return "instances.planned" }
func (*InstanceStarted) EventType() string      { return "instance.started" }
func (*InstanceReady) EventType() string        { return "instance.ready" }
func (*InstanceEnded) EventType() string        { return "instance.ended" }
func (*ExecRequested) EventType() string        { return "exec.requested" }

func (*EnvironmentCreated) EventVersion() uint16   { return 1 }
func (*VarsChanged) EventVersion() uint16          { return 1 }
func (*AppPlaced) EventVersion() uint16            { return 1 }
func (*HostJoined) EventVersion() uint16           { return 1 }
func (*HostDrainStarted) EventVersion() uint16     { return 1 }
func (*HostDrainEnded) EventVersion() uint16       { return 1 }
func (*HostRemoved) EventVersion() uint16          { return 1 }
func (*ReleaseCreated) EventVersion() uint16       { return 1 }
func (*ReleaseSourced) EventVersion() uint16       { return 1 }
func (*DeploymentStarted) EventVersion() uint16    { return 1 }
func (*DeploymentPaused) EventVersion() uint16     { return 1 }
func (*DeploymentResumed) EventVersion() uint16    { return 1 }
func (*DeploymentTurnedBack) EventVersion() uint16 { return 1 }
func (*DeploymentSwitched) EventVersion() uint16   { return 1 }
func (*DeploymentFinished) EventVersion() uint16   { return 1 }
func (*InstancesPlanned) EventVersion() uint16     { return 1 }
func (*InstanceStarted) EventVersion() uint16      { return 1 }
func (*InstanceReady) EventVersion() uint16        { return 1 }
func (*InstanceEnded) EventVersion() uint16        { return 1 }
func (*ExecRequested) EventVersion() uint16        { return 1 }

// Encode gives the bytes that the log stores for a payload.
func Encode(p Payload) ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", p.EventType(), err)
	}
	return b, nil
}

// Decode reads the payload of an event. An unknown type, version or field is an error.
func Decode(typ string, version uint16, payload []byte) (Payload, error) {
	p := blank(typ)
	if p == nil {
		return nil, fmt.Errorf("unknown event type %q: %w", typ, ErrNewer)
	}
	payload, err := current(typ, version, p.EventVersion(), payload)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(p); err != nil {
		if json.Unmarshal(payload, blank(typ)) == nil {
			// All that is wrong with it is a field that this version does not know.
			err = fmt.Errorf("%w: %w", err, ErrNewer)
		}
		return nil, fmt.Errorf("decode %s: %w", typ, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("decode %s: bytes after the document", typ)
	}
	return p, nil
}

func blank(typ string) Payload {
	all := []Payload{
		&EnvironmentCreated{}, &VarsChanged{}, &AppPlaced{}, &HostJoined{}, &HostDrainStarted{}, &HostDrainEnded{}, &HostRemoved{}, &ReleaseCreated{}, &ReleaseSourced{}, &DeploymentStarted{}, &DeploymentPaused{}, &DeploymentResumed{}, &DeploymentTurnedBack{},
		&DeploymentSwitched{}, &DeploymentFinished{}, &InstancesPlanned{}, &InstanceStarted{}, &InstanceReady{}, &InstanceEnded{},
		&ExecRequested{},
		&SecretPut{}, &SecretRevoked{}, &RegistryLoggedIn{}, &RegistryLoggedOut{}, &RouteSet{}, &RouteUnset{},
		&VolumeBound{}, &VolumeGrown{}, &VolumeDetached{}, &VolumeDeleted{}, &VolumeRemoved{}, &SnapshotTaken{}, &SnapshotDeleted{}, &VolumeExported{},
		&AppDestroyed{}, &EnvironmentDestroyed{}, &QuotaSet{},
		&TokenCreated{}, &TokenRevoked{}, &JoinAllowed{}, &HostAdmitted{}, &HostRevoked{},
		&RunStarted{}, &RunStopped{},
	}
	for _, p := range all {
		if p.EventType() == typ {
			return p
		}
	}
	return nil
}
