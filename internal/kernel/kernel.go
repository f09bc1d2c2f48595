// Package kernel finds the guest kernel and prepares what a VM boots from it: the kernel image and an
// initramfs with the kernel's own modules and pinnace-init.
//
// Kernels lie unpacked under one directory, a folder for each release, as scripts/get-kernel.sh makes them:
//
//	<dir>/<release>/vmlinuz    bzImage (amd64) or Image (arm64)
//	<dir>/<release>/config     what the kernel was built with
//	<dir>/<release>/modules/   what a package has under lib/modules/<release>; may be absent when
//	                           everything that a guest needs is built in
//	<dir>/<release>/origin     where it came from; may be absent
//	<dir>/chosen               the release that new VMs boot; absent for the newest that is fit
//
// The package neither downloads kernels nor installs them, and it starts no VM.
package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNoKernel is wrapped by the errors of Find when no kernel is fit to boot a guest.
var ErrNoKernel = errors.New("no guest kernel")

const hint = "run scripts/get-kernel.sh to download one"

// Bounds on what is read into memory. Real values are a tenth of these.
const (
	maxImage  = 256 << 20
	maxConfig = 4 << 20
	maxModule = 64 << 20
)

// Source is a kernel as it lies on the disk. Having one says nothing about whether it is fit; Check does.
type Source struct {
	Release string // as uname -r prints it, 6.12.95+deb12-cloud-amd64
	Dir     string
}

// Image is the path of the kernel image as the package has it.
func (s Source) Image() string { return filepath.Join(s.Dir, "vmlinuz") }

func (s Source) configPath() string  { return filepath.Join(s.Dir, "config") }
func (s Source) modulesPath() string { return filepath.Join(s.Dir, "modules") }

// List returns the kernels under dir, the newest first. A directory that does not exist holds none.
func List(dir string) ([]Source, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list kernels: %w", err)
	}
	var found []Source
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // being unpacked, or left half unpacked by a crash
		}
		s := Source{Release: e.Name(), Dir: filepath.Join(dir, e.Name())}
		if info, err := os.Stat(s.Image()); err == nil && info.Mode().IsRegular() {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b Source) int {
		return -cmp.Or(slices.Compare(version(a.Release), version(b.Release)), strings.Compare(a.Release, b.Release))
	})
	return found, nil
}

// Find returns the newest kernel under dir that can boot a guest on this machine. One that was built here is taken only
// when there is no other: nobody but its maker sees to its security updates. The error wraps ErrNoKernel and says what
// is wrong with every kernel that is there.
func Find(dir string) (Source, error) {
	all, err := List(dir)
	if err != nil {
		return Source{}, err
	}
	if len(all) == 0 {
		return Source{}, fmt.Errorf("%w in %s: %s", ErrNoKernel, dir, hint)
	}
	slices.SortStableFunc(all, func(a, b Source) int { return boolInt(a.Origin().Built) - boolInt(b.Origin().Built) })
	var reasons []string
	for _, s := range all {
		err := s.Check()
		if err == nil {
			return s, nil
		}
		reasons = append(reasons, err.Error())
	}
	return Source{}, fmt.Errorf("%w fit for use in %s: %s: %s", ErrNoKernel, dir, strings.Join(reasons, "; "), hint)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// version returns the leading numbers of a release: 6, 12, 95 of 6.12.95+deb12-cloud-amd64. It is empty
// when the release does not begin with one.
func version(release string) []int {
	var v []int
	numbers := release
	if end := strings.IndexFunc(release, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); end >= 0 {
		numbers = release[:end]
	}
	for part := range strings.SplitSeq(numbers, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			break
		}
		v = append(v, n)
	}
	return v
}

// readFile reads a whole file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// readAll reads r to its end and refuses more than limit bytes, so that a small compressed file cannot
// fill the memory.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return b, nil
}
