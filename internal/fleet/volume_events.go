package fleet

// VolumeBound makes a volume known and binds it: to the app, the ordinal and the name in the manifest that it is for,
// and to the host on which it is. It never moves to another one.
type VolumeBound struct {
	Volume      string `json:"volume"`
	Environment string `json:"environment"`
	App         string `json:"app"`
	Name        string `json:"name"`
	Ordinal     int    `json:"ordinal"`
	Host        string `json:"host"`
	SizeBytes   int64  `json:"size_bytes"`
	// SHA256 is that of the image that was imported, in hexadecimal; empty for a volume that begins empty.
	SHA256 string `json:"sha256,omitempty"`
}

// VolumeGrown says how large a volume is to be from its instance's next start on. Volumes only grow.
type VolumeGrown struct {
	Volume    string `json:"volume"`
	SizeBytes int64  `json:"size_bytes"`
}

// VolumeDetached takes a volume away from its app, which gets a new one when it needs it. The volume stays on its host
// with all that is in it.
type VolumeDetached struct {
	Volume string `json:"volume"`
}

// VolumeDeleted says that a volume that was detached is to be removed from its host, with its snapshots.
type VolumeDeleted struct {
	Volume string `json:"volume"`
}

// VolumeRemoved says that the host of a volume that was deleted has it no longer.
type VolumeRemoved struct {
	Volume string `json:"volume"`
}

// SnapshotTaken says that the host of a volume has made a copy of it.
type SnapshotTaken struct {
	Volume    string `json:"volume"`
	Snapshot  string `json:"snapshot"`
	SizeBytes int64  `json:"size_bytes"`
}

// SnapshotDeleted says that a copy of a volume is to be removed.
type SnapshotDeleted struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot"`
}

// VolumeExported says that somebody was given what is in a volume, or in a snapshot of it.
type VolumeExported struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot,omitempty"`
}

// AppDestroyed ends an app in an environment: its instances stop, and when the last has ended, the app is gone with its
// settings and its volumes. Its releases and the records of its deployments stay.
type AppDestroyed struct {
	Environment string `json:"environment"`
	App         string `json:"app"`
}

// EnvironmentDestroyed ends an environment, with all of its apps as AppDestroyed does. It is gone when the last of them
// is.
type EnvironmentDestroyed struct {
	Environment string `json:"environment"`
}

// QuotaSet bounds what the instances of an environment may have together. What runs already, runs on.
type QuotaSet struct {
	Environment string `json:"environment"`
	Quota       Quota  `json:"quota"`
}

// Types of the events of volumes, of destroying and of quotas, all in version 1.

func (*VolumeBound) EventType() string          { return "volume.bound" }
func (*VolumeGrown) EventType() string          { return "volume.grown" }
func (*VolumeDetached) EventType() string       { return "volume.detached" }
func (*VolumeDeleted) EventType() string        { return "volume.deleted" }
func (*VolumeRemoved) EventType() string        { return "volume.removed" }
func (*SnapshotTaken) EventType() string        { return "volume.snapshot-taken" }
func (*SnapshotDeleted) EventType() string      { return "volume.snapshot-deleted" }
func (*VolumeExported) EventType() string       { return "volume.exported" }
func (*AppDestroyed) EventType() string         { return "app.destroyed" }
func (*EnvironmentDestroyed) EventType() string { return "environment.destroyed" }
func (*QuotaSet) EventType() string             { return "environment.quota-set" }

func (*VolumeBound) EventVersion() uint16          { return 1 }
func (*VolumeGrown) EventVersion() uint16          { return 1 }
func (*VolumeDetached) EventVersion() uint16       { return 1 }
func (*VolumeDeleted) EventVersion() uint16        { return 1 }
func (*VolumeRemoved) EventVersion() uint16        { return 1 }
func (*SnapshotTaken) EventVersion() uint16        { return 1 }
func (*SnapshotDeleted) EventVersion() uint16      { return 1 }
func (*VolumeExported) EventVersion() uint16       { return 1 }
func (*AppDestroyed) EventVersion() uint16         { return 1 }
func (*EnvironmentDestroyed) EventVersion() uint16 { return 1 }
func (*QuotaSet) EventVersion() uint16             { return 1 }
