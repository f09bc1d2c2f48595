package guest

// Roles of a Disk.
const (
	RoleRootMeta = "rootfs-meta" // the image's EROFS metadata
	RoleLayer    = "layer"       // one layer's tar
	RolePack     = "pack"        // a GPT disk with a layer's tar in each partition
	RoleScratch  = "scratch"     // an ext4 file system, grown to its disk by the guest; without one the guest uses memory
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
