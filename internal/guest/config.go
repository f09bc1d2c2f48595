package guest

// Roles of a Disk.
const (
	RoleRootMeta = "rootfs-meta" // the image's EROFS metadata
	RoleLayer    = "layer"       // one layer's tar
	RolePack     = "pack"        // a GPT disk with a layer's tar in each partition
	RoleScratch  = "scratch"     // an ext4 file system, grown to its disk by the guest; without one the guest uses memory
	RoleVolume   = "volume"      // an ext4 file system that outlives the VM, grown to its disk by the guest
)

// Disk is a virtio-blk device of the VM.
type Disk struct {
	Role   string `json:"role"`
	Serial string `json:"serial,omitempty"` // of the device; "" where the VMM can't set one
	Order  int    `json:"order"`            // position among the VM's disks from 0, used when no device has the serial
	UUID   string `json:"uuid,omitempty"`   // of the file system; checked for rootfs-meta when given
}

// LayerSlot says where the tar of one entry of the EROFS device table is.
type LayerSlot struct {
	Disk      int `json:"disk"`      // index in Config.Disks
	Partition int `json:"partition"` // 0: the whole disk, n: its n-th partition
}

// Network is the VM's one interface.
type Network struct {
	MAC       string      `json:"mac,omitempty"` // names the interface; "": the only one there is
	Addresses []string    `json:"addresses"`     // with prefix length, IPv4 and IPv6
	Gateway4  string      `json:"gateway4,omitempty"`
	Gateway6  string      `json:"gateway6,omitempty"`
	MTU       int         `json:"mtu,omitempty"` // 0: as it is
	DNS       []string    `json:"dns,omitempty"`
	Search    []string    `json:"search,omitempty"`
	Hosts     []HostEntry `json:"hosts,omitempty"` // added to /etc/hosts
}

// HostEntry is a line of /etc/hosts.
type HostEntry struct {
	Address string   `json:"address"`
	Names   []string `json:"names"`
}

// Process is what to run. Image and manifest are merged by the host already; the guest runs Entrypoint followed by
// Cmd.
type Process struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`         // NAME=value; a later one wins
	WorkDir    string   `json:"workdir,omitempty"`     // "": "/"; created when missing
	User       string   `json:"user,omitempty"`        // user[:group], names or numbers; "": 0
	StopSignal string   `json:"stop_signal,omitempty"` // "": SIGTERM
}

// Limits of the workload; 0 leaves the guest's default.
type Limits struct {
	PIDs   int64  `json:"pids,omitempty"`
	NoFile uint64 `json:"nofile,omitempty"`
}

// What a guest says in Hello.Can that mounts volumes, and places secrets. One that does not would start the workload
// without them.
const (
	CanVolumes = "volumes"
	CanSecrets = "secrets"
)

// Volume says where a disk with the role of a volume is mounted.
type Volume struct {
	Name     string `json:"name"` // for messages
	Disk     int    `json:"disk"` // index in Config.Disks
	Path     string `json:"path"` // absolute; made when missing
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Formats of a Secret's files.
const (
	FormatDir    = "dir"    // Path is a directory with a file for each key
	FormatJSON   = "json"   // Path is one file, a JSON object of strings, sorted by key
	FormatDotenv = "dotenv" // Path is one file of KEY=value lines, sorted by key
)

// Secret says how a bundle of secrets appears to the workload. The values come in a Bundle of their own, so that a
// Config holds nothing that must not be seen.
type Secret struct {
	Bundle  string   `json:"bundle"`
	Version uint64   `json:"version"`          // that the workload is started with
	Path    string   `json:"path,omitempty"`   // absolute; "": no files
	Format  string   `json:"format,omitempty"` // with Path
	Mode    uint32   `json:"mode,omitempty"`   // permission bits of the files
	Owner   string   `json:"owner,omitempty"`  // user[:group], names or numbers of the image; "": the process's user
	Env     []string `json:"env,omitempty"`    // keys that become variables of the process
}

// Bounds of a bundle.
const (
	MaxBundleBytes = 256 << 10 // of keys and values together
	MaxBundleKeys  = 1024
	MaxSecretKey   = 128 // bytes of a key
)
