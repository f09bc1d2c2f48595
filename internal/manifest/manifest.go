package manifest

import "time"

// SchemaV1 is the only schema version there is.
const SchemaV1 = "v1"

// Manifest is one workload, valid and with every default of its schema version filled in. Values that
// default to something in the image are zero: the image digest pins them.
//
// A Manifest comes from Parse or ParseCanonical and is not to be changed afterwards.
type Manifest struct {
	Schema string
	Name   string

	Entrypoint []string // nil: the image's
	Command    []string // nil: the image's; empty but not nil: no arguments
	Workdir    string   // "": the image's
	User       string   // "": the image's; else "uid[:gid]" or names to be looked up in the image
	Arch       []string // nil: every architecture that the image has; sorted
	Restart    Restart
	Vars       []string // names that the environment must supply; sorted
	Env        map[string]string

	Resources Resources
	Stop      Stop
	Ports     map[string]Port
	Health    Health
	Rollout   Rollout
	Secrets   map[string]Secret
	Volumes   map[string]Volume
	Network   Network

	source  string   // the TOML text, for positions; empty after ParseCanonical
	origins []origin // where each value that was written down stands
	later   []string // paths of set keys that are younger than their schema version
	filled  int      // how many values are defaults
}

// Restart says what happens when the process ends by itself.
type Restart string

// The restart policies.
const (
	RestartAlways    Restart = "always"
	RestartOnFailure Restart = "on-failure"
	RestartNever     Restart = "never"
)

// Resources is what one instance gets.
type Resources struct {
	CPUMilli    int64 // thousandths of a vCPU; a weight, may be oversubscribed
	MemoryBytes int64 // RAM of the VM, a hard cap
	DiskBytes   int64 // writable scratch, gone when the instance is replaced
}

// Stop says how an instance is asked to end.
type Stop struct {
	Signal  string // "SIGTERM"; "": the image's StopSignal, else SIGTERM
	Drain   time.Duration
	Timeout time.Duration
}

// Values of Port.Protocol, Expose, Edge and ProxyProtocol.
const (
	ProtocolTCP = "tcp"
	ProtocolUDP = "udp"

	ExposeNone     = "none"
	ExposeInternal = "internal"
	ExposePublic   = "public"

	EdgeSNI = "sni"
	EdgeRaw = "raw"

	ProxyProtocolNone = "none"
	ProxyProtocolV2   = "v2"
)

// Port is one port that the process listens on.
type Port struct {
	Port          int
	Protocol      string
	Expose        string
	Edge          string // "" unless public
	PublicPort    int    // 0 unless public
	ProxyProtocol string // "" unless public and TCP
}

// Health holds the probes. A nil Ready means the platform's own readiness: every TCP port accepts a
// connection or, without one, the process stays alive for Rollout.Hold. A nil Live means no liveness probe.
type Health struct {
	Ready *Probe
	Live  *Probe
}

// Values of Probe.Type.
const (
	ProbeHTTP = "http"
	ProbeTCP  = "tcp"
	ProbeExec = "exec"
)

// Probe is one health check.
type Probe struct {
	Type     string
	Port     string   // name of a port; http and tcp only
	Path     string   // http only
	Status   []int    // http only; sorted
	Command  []string // exec only
	Interval time.Duration
	Timeout  time.Duration
	Pass     int // successes in a row that make it pass
	Fail     int // failures in a row that make it fail
}

// Values of Rollout.Strategy and Rollout.OnFailure.
const (
	StrategyRolling   = "rolling"
	StrategyCanary    = "canary"
	StrategyBlueGreen = "blue-green"
	StrategyRecreate  = "recreate"

	OnFailureRollback = "rollback"
	OnFailurePause    = "pause"
)

// Rollout says how a new release takes the place of the old one.
type Rollout struct {
	Strategy    string
	MaxParallel int
	BootTimeout time.Duration // from start to first ready, per instance
	Hold        time.Duration // how long it must stay ready
	Deadline    time.Duration // for the whole rollout
	OnFailure   string
	Canary      int // 0 unless the strategy is canary
	Before      *Before
}

// Before is a one-off run before anything is touched.
type Before struct {
	Command []string
	Timeout time.Duration
}

// Values of Secret.Format and Secret.OnChange. OnChange may also be OnChangeSignal and a signal's name.
const (
	FormatJSON   = "json"
	FormatDotenv = "dotenv"
	FormatDir    = "dir"

	OnChangeRollout = "rollout"
	OnChangeNone    = "none"
	OnChangeSignal  = "signal:"
)

// Secret is a bundle of the environment, delivered as files, as variables of the process, or both.
type Secret struct {
	Path     string   // "": no files
	Env      []string // keys that become variables; sorted
	Format   string   // "" without Path
	Mode     uint32   // permission bits of the files; 0 without Path
	Owner    string   // "": the user of the process
	Require  []string // keys that must exist; sorted
	OnChange string
}

// Values of Volume.Per and Volume.OnMissing.
const (
	PerInstance = "instance"
	PerWorkload = "workload"

	OnMissingCreate = "create"
	OnMissingFail   = "fail"
)

// Volume is a disk that outlives its instance.
type Volume struct {
	Path      string
	SizeBytes int64
	Per       string
	ReadOnly  bool
	OnMissing string
}

// Values of Network.Egress.
const (
	EgressAll      = "all"
	EgressInternal = "internal"
	EgressNone     = "none"
)

// Network says what an instance may reach.
type Network struct {
	Egress string
}

// Counts tells how many effective values the manifest has, and how many of them are defaults.
func (m *Manifest) Counts() (values, defaults int) {
	values = m.filled
	for _, o := range m.origins {
		if o.key.Type.holdsValue() && (o.key.Type != StringMap || o.name == "") {
			values++
		}
	}
	return values, m.filled
}
