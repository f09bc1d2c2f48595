package fleet

import (
	"time"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// Kind is what a deployment was asked for.
type Kind string

// The kinds of deployments.
const (
	KindDeploy   Kind = "deploy"
	KindRollback Kind = "rollback"
	KindStop     Kind = "stop"
	// KindScale changes the count and nothing else: what runs, runs on.
	KindScale Kind = "scale"
	// KindSettings brings changed settings of the environment to what is live.
	KindSettings Kind = "settings"
	// KindRestart replaces all instances of what is live.
	KindRestart Kind = "restart"
	// KindSecrets brings new versions of secrets to what runs, and nothing else: what runs, runs on.
	KindSecrets Kind = "secrets"
)

// DeploymentState is how far a deployment is.
type DeploymentState string

// The states of a deployment. The first two are of one that is active.
const (
	Running     DeploymentState = "running"
	RollingBack DeploymentState = "rolling-back"
	Succeeded   DeploymentState = "succeeded"
	RolledBack  DeploymentState = "rolled-back"
	Failed      DeploymentState = "failed"
	Mixed       DeploymentState = "mixed"
)

// Records are shared between the state and its readers, and replaced as a whole when they change: nobody
// may write to one.
type (
	// Environment is an isolation domain.
	Environment struct {
		Name      string
		CreatedAt time.Time
		// Apps counts the apps that were ever deployed; it gives the next one its virtual address.
		Apps int
		// Vars are the variables that manifests can ask for by name; no deployment gets others.
		Vars map[string]string
		// Placement has the labels that hosts must have, by app.
		Placement map[string]map[string]string
		// Routes say where ports are reached instead of what their manifest says, by app and port.
		Routes map[string]map[string]Route
		// Quota bounds what its instances may have together.
		Quota Quota
		// DestroyedAt is since when it is being destroyed; zero when it is not.
		DestroyedAt time.Time
	}

	// App is an app in an environment.
	App struct {
		Environment, Name string
		// Index is the app's number in the environment, in order of first deployment, from 0.
		Index int
		// Count is how many instances a deployment of it has.
		Count int
		// Live is the last deployment that succeeded, Active the one that runs, Latest the last one that was
		// started. Each may be empty.
		Live, Active, Latest string
		// Instances are the ids of those that run or are to run, Ended of some that have ended, oldest first.
		Instances, Ended []string
		// EndedRuns are the ids of some one-offs that have ended, oldest first.
		EndedRuns []string `json:",omitempty"`
		// DestroyedAt is since when it is being destroyed; zero when it is not.
		DestroyedAt time.Time
	}

	// Host is what a host said of itself when it joined last.
	Host struct {
		ID, Name, Architecture           string
		MemoryBytes, CPUMilli, DiskBytes int64
		Labels                           map[string]string
		Version, Driver, Accelerator     string
		JoinedAt                         time.Time
		// DrainingAt is since when the host is to become empty; zero when it is not.
		DrainingAt time.Time
	}

	// Booking is what is placed on a host: sums over its instances, without any overhead.
	Booking struct {
		MemoryBytes, CPUMilli, DiskBytes int64
		Instances                        []string
		// Volumes are the ids of those that are there, whatever uses them; their sizes are in none of the sums.
		Volumes []string
	}

	// Release is a pair of image and manifest, with what is needed to run it.
	Release struct {
		ID        release.ID
		App       string
		Image     release.ImageDigest
		Hash      manifest.Hash
		Source    string
		Canonical string
		Manifest  *manifest.Manifest `json:"-"`
		Sources   []string
		Platforms []Platform
		Seq       uint64
		CreatedAt time.Time
		CreatedBy string
	}

	// Deployment is the record of one deployment; it holds everything that a rollback to it restores.
	Deployment struct {
		ID, Environment, App string
		Kind                 Kind
		Release              release.ID
		Count                int
		Vars                 map[string]string
		// Secrets are the versions of the bundles that its manifest names.
		Secrets map[string]uint64
		// Previous was live when it began, Before was the one started before it, whatever became of that,
		// and Target is the record that a rollback restores.
		Previous, Before, Target string
		// PausedAt is since when it is paused, zero while it is not; ResumedAt is when it went on last.
		PausedAt, ResumedAt time.Time
		// BeforeDone is true once rollout.before has succeeded.
		BeforeDone bool
		// Switched is true once connections are led to the new instances of a blue-green deployment.
		Switched            bool
		State               DeploymentState
		Reason              string
		Actor               string
		Seq                 uint64
		StartedAt, TurnedAt time.Time
		EndedAt             time.Time
	}

	// Instance is one microVM-to-be, through all of its attempts.
	Instance struct {
		ID, Environment, App string
		Ordinal              int
		Host                 string
		Release              release.ID
		// Deployment is the one that it belongs to; Planner the one in whose course it was placed. They
		// differ for an instance that a rollout started on its way back.
		Deployment, Planner string
		PlacedAt            time.Time
		// Task is true for a one-off, which serves nobody: that of rollout.before, or one of its own, which has a Run and no
		// deployment.
		Task bool
		Run  *Run `json:",omitempty"`
		// Stop is true once it was asked to stop.
		Stop   bool
		StopAt time.Time

		// Attempts count from 1; each of these is the last one that got that far.
		StartedAttempt, ReadyAttempt, EndedAttempt uint32
		FirstStartedAt, StartedAt, ReadyAt         time.Time
		Booted                                     *Booted
		// Crashes counts ends that nobody asked for. Burst counts the events of ends that came close upon
		// each other: a reader of the log wants the first of them, not all.
		Crashes, Burst uint32
		LastEnd        *End
		// Final is true once it will not run again.
		Final bool
	}

	// End is the end of an attempt.
	End struct {
		Attempt uint32
		Cause   Cause
		Planned bool
		At      time.Time
	}
)

// InPlace reports whether a deployment of the kind leaves the instances that it finds, and makes them its own.
func (k Kind) InPlace() bool { return k == KindScale || k == KindSecrets }

// Active reports whether the deployment is still under way.
func (d *Deployment) Active() bool { return d.State == Running || d.State == RollingBack }

// Serves reports whether the instance runs, or is to run, and was not asked to stop.
func (i *Instance) Serves() bool { return !i.Final && !i.Stop }

// Completed reports whether the instance ended by itself having done what it had to do.
func (i *Instance) Completed() bool {
	return i.Final && !i.Stop && i.LastEnd != nil && !i.LastEnd.Planned && i.LastEnd.Cause.Kind == "exited" && i.LastEnd.Cause.Code == 0
}
