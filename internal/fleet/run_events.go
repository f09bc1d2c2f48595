package fleet

// RunStarted places a one-off: a command of somebody's, in a microVM of its own, of a release of an app. It serves nobody,
// belongs to no deployment, and runs at most once. Of the command only the program is in it, for the reasons that
// ExecRequested gives; all of it is sealed beside the log until the one-off has ended.
type RunStarted struct {
	Instance    string `json:"instance"`
	Environment string `json:"environment"`
	App         string `json:"app"`
	Release     string `json:"release"`
	Host        string `json:"host"`
	Program     string `json:"program"`
	Arguments   int    `json:"arguments"` // how many there were
	// Sealed is the name of the sealed command, sha256: and its digest, Recipient whom it is sealed for.
	Sealed    string `json:"sealed"`
	Recipient string `json:"recipient"`
	// TimeoutMilli is for how long it may be there, from this event on, in milliseconds.
	TimeoutMilli int64             `json:"timeout_milli"`
	Vars         map[string]string `json:"vars,omitempty"`
	// Secrets are the versions of the bundles that the release's manifest names.
	Secrets map[string]uint64 `json:"secrets,omitempty"`
}

// RunStopped says that a one-off is to stop before it has ended by itself. How it ended says an InstanceEnded.
type RunStopped struct {
	Instance string `json:"instance"`
	Reason   string `json:"reason"`
	// TimedOut is true when nobody asked for it: its time was over.
	TimedOut bool `json:"timed_out,omitempty"`
}

func (*RunStarted) EventType() string    { return "run.started" }
func (*RunStopped) EventType() string    { return "run.stopped" }
func (*RunStarted) EventVersion() uint16 { return 1 }
func (*RunStopped) EventVersion() uint16 { return 1 }
