package firecrackertest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// jailerFlags are the jailer's options that take a value, and whether they are required.
var jailerFlags = map[string]bool{
	"id": true, "exec-file": true, "uid": true, "gid": true, "chroot-base-dir": false, "netns": false,
	"cgroup": false, "cgroup-version": false, "parent-cgroup": false, "resource-limit": false,
}

// jailOrder is what a jailer was told.
type jailOrder struct {
	taps   chan tapRequest
	values map[string]string
	rest   []string // Firecracker's
	uid    int
	gid    int
	root   string
}

func jailerMain(args []string, guests map[string]Guest) int {
	if slices.Contains(args, "--version") {
		fmt.Printf("Jailer v%s\n\n", Version)
		return 0
	}
	o, err := parseJailer(args)
	if err == nil {
		err = o.build()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		return 1
	}
	// The real one executes Firecracker now. The copy of it in the jail could not run there, being linked dynamically.
	return runFirecracker(append([]string{"--id", o.values["id"]}, o.rest...), guests, o.taps)
}

func parseJailer(args []string) (*jailOrder, error) {
	o := &jailOrder{taps: make(chan tapRequest), values: map[string]string{"chroot-base-dir": "/srv/jailer", "cgroup-version": "1"}}
	for len(args) > 0 {
		name, isFlag := strings.CutPrefix(args[0], "--")
		if isFlag && name == "" {
			o.rest = args[1:]
			break
		}
		if _, known := jailerFlags[name]; !isFlag || !known {
			return nil, fmt.Errorf("found argument '%s' which wasn't expected, or isn't valid in this context", args[0])
		}
		if len(args) < 2 {
			return nil, fmt.Errorf("the argument '%s' requires a value, but none was supplied", name)
		}
		o.values[name] = args[1]
		args = args[2:]
	}
	for name, required := range jailerFlags {
		if required && o.values[name] == "" {
			return nil, fmt.Errorf("argument '%s' required, but not found", name)
		}
	}
	return o, o.validate()
}

var instanceID = regexp.MustCompile(`\A[A-Za-z0-9-]{1,64}\z`)

func (o *jailOrder) validate() error {
	if !instanceID.MatchString(o.values["id"]) {
		return fmt.Errorf("invalid instance ID: %q", o.values["id"])
	}
	name := filepath.Base(o.values["exec-file"])
	if info, err := os.Stat(o.values["exec-file"]); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", o.values["exec-file"])
	}
	if !strings.Contains(name, "firecracker") {
		return fmt.Errorf("invalid filename: the filename of `--exec-file` option must contain \"firecracker\": %s", name)
	}
	base, err := filepath.EvalSymlinks(o.values["chroot-base-dir"])
	if err != nil {
		return fmt.Errorf("failed to canonicalize path %s: %w", o.values["chroot-base-dir"], err)
	}
	o.root = filepath.Join(base, name, o.values["id"], "root")
	if o.uid, err = strconv.Atoi(o.values["uid"]); err != nil || o.uid < 0 {
		return fmt.Errorf("invalid uid: %s", o.values["uid"])
	}
	if o.gid, err = strconv.Atoi(o.values["gid"]); err != nil || o.gid < 0 {
		return fmt.Errorf("invalid gid: %s", o.values["gid"])
	}
	if parent := o.values["parent-cgroup"]; parent != "" && !filepath.IsLocal(parent) {
		return errors.New("parent cgroup path is invalid: path should not be absolute or contain '..' or '.'")
	}
	if limit, ok := o.values["resource-limit"]; ok && !regexp.MustCompile(`\A(fsize|no-file)=\d+\z`).MatchString(limit) {
		return fmt.Errorf("invalid format for resources limits: %s", limit)
	}
	return nil
}

// build makes the jail and moves the process into it, as far as its rights go.
func (o *jailOrder) build() error {
	if err := os.MkdirAll(o.root, 0o700); err != nil {
		return err
	}
	program := filepath.Base(o.values["exec-file"])
	if err := linkOrCopy(o.values["exec-file"], filepath.Join(o.root, program)); err != nil {
		return fmt.Errorf("failed to copy %s: %w", o.values["exec-file"], err)
	}
	if err := o.joinCgroup(); err != nil {
		return err
	}
	if netns := o.values["netns"]; netns != "" {
		if err := serveTapsIn(netns, o.taps); err != nil {
			return err
		}
	} else {
		go serveTaps(o.taps)
	}
	if err := os.Chdir(o.root); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("failed to change root: %w", err)
		}
	}
	if err := o.furnish(); err != nil {
		return err
	}
	// Left-overs of a jail of the same id show here.
	pid, err := os.OpenFile(program+".pid", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // as the real one
	if err != nil {
		return fmt.Errorf("failed to open file %s.pid: %w", program, err)
	}
	_, err = fmt.Fprint(pid, os.Getpid())
	if err := errors.Join(err, pid.Close()); err != nil {
		return err
	}
	return o.become()
}

// furnish makes the directories and devices of the jail.
func (o *jailOrder) furnish() error {
	for _, dir := range []string{".", "dev", "dev/net", "run"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(dir, 0o700), os.Lchown(dir, o.uid, o.gid)); err != nil { //nolint:gosec // a directory
			return err
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for name, number := range map[string]uint64{
		"dev/net/tun": unix.Mkdev(10, 200), "dev/kvm": unix.Mkdev(10, 232), "dev/urandom": unix.Mkdev(1, 9),
	} {
		if err := unix.Mknod(name, unix.S_IFCHR|0o600, int(number)); err != nil {
			return fmt.Errorf("failed to create /%s via mknod inside the jail: %w", name, err)
		}
		if err := os.Lchown(name, o.uid, o.gid); err != nil {
			return err
		}
	}
	return nil
}

// joinCgroup does what the jailer does with version 2 and no values to set: it moves itself to the parent, if there is
// one by that name.
func (o *jailOrder) joinCgroup() error {
	if o.values["cgroup-version"] != "2" {
		return nil
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		parent := filepath.Join(f[1], o.values["parent-cgroup"])
		if _, err := os.Stat(parent); err != nil {
			return nil //nolint:nilerr // then it stays where it is
		}
		return os.WriteFile(filepath.Join(parent, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	return errors.New("hierarchy not found: no hierarchy found for this cgroup version")
}

// become takes on the jail's identity.
func (o *jailOrder) become() error {
	if os.Geteuid() != 0 {
		if o.uid != os.Getuid() || o.gid != os.Getgid() {
			return errors.New("failed to exec into Firecracker: operation not permitted")
		}
		return nil
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(o.gid), syscall.Setuid(o.uid))
}

// A tapRequest asks the thread that is in the machine's network namespace to attach to a device.
type tapRequest struct {
	name   string
	result chan<- error
}

// serveTapsIn keeps a thread in the network namespace at path. The real one is there as a whole.
func serveTapsIn(path string, requests <-chan tapRequest) error {
	entered := make(chan error)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
		entered <- err
		if err == nil {
			serveTaps(requests)
		}
	}()
	if err := <-entered; err != nil {
		return fmt.Errorf("failed to join network namespace: netns: %w", err)
	}
	return nil
}

func serveTaps(requests <-chan tapRequest) {
	for r := range requests {
		r.result <- attachTap(r.name)
	}
}

// attachTap opens a tap device as Firecracker does, and keeps it open. Without root nothing can be attached.
func attachTap(name string) error {
	if _, err := os.Stat("dev/net/tun"); err != nil {
		return nil //nolint:nilerr // the stand-in has no rights
	}
	fd, err := unix.Open("dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}
