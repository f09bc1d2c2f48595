package firecracker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// oldest is the first release without the escapes known when this was written.
var oldest = version{number: [3]int{1, 15, 1}}

// whyOldest names them.
const whyOldest = "older ones let a guest's root write outside its memory (CVE-2026-5747), or a link in a jail overwrite files of the host (CVE-2026-1386)"

// InstallHint says how to get Firecracker and its jailer, which Debian does not have.
const InstallHint = "unpack a release of 1.15.1 or newer from https://github.com/firecracker-microvm/firecracker/releases " +
	"and put firecracker and jailer into PATH"

// A version is what Firecracker calls itself.
type version struct {
	number [3]int
	// suffix is what follows the numbers, as in 1.16.0-dev. A version with one comes before that without.
	suffix string
}

func (v version) String() string {
	return fmt.Sprintf("%d.%d.%d%s", v.number[0], v.number[1], v.number[2], v.suffix)
}

func (v version) olderThan(w version) bool {
	c := cmp.Or(slices.Compare(v.number[:], w.number[:]), boolCompare(v.suffix == "", w.suffix == ""))
	return c < 0
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// versionLine is how the first line of --version looks, of Firecracker and of the jailer.
var versionLine = regexp.MustCompile(`\A(?:Firecracker|Jailer) v(\d{1,6})\.(\d{1,6})\.(\d{1,6})([-+][0-9A-Za-z.+-]{1,64})?\s*(?:\n|\z)`)

func parseVersion(out string) (version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return version{}, fmt.Errorf("--version printed %.80q", out)
	}
	v := version{suffix: m[4]}
	for i := range v.number {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return version{}, err
		}
		v.number[i] = n
	}
	return v, nil
}

// findProgram resolves a program's file and asks for its version.
func findProgram(ctx context.Context, name string) (path string, v version, err error) {
	path, err = exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", version{}, &vm.MissingError{Program: name, Hint: InstallHint, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return "", version{}, &vm.MissingError{Program: path, Hint: InstallHint, Err: err}
	}
	if v, err = parseVersion(string(out)); err != nil {
		return "", version{}, fmt.Errorf("%s does not look like a program of Firecracker: %w", path, err)
	}
	return path, v, nil
}

// findPrograms resolves Firecracker and its jailer and checks that they are fit for use.
func (d *Driver) findPrograms(ctx context.Context, h *host) error {
	binary, v, err := findProgram(ctx, d.opts.Binary)
	if err != nil {
		return err
	}
	jailer, jv, err := findProgram(ctx, d.opts.Jailer)
	if err != nil {
		return err
	}
	switch {
	case v.olderThan(oldest):
		return fmt.Errorf("%s is version %v, and %v is the oldest that may run guests: %s; %s", binary, v, oldest, whyOldest, InstallHint)
	case v != jv:
		return fmt.Errorf("%s is version %v and %s is version %v: they have to be of one release", binary, v, jailer, jv)
	case !jailerName.MatchString(filepath.Base(binary)):
		return errors.New("the jailer wants \"firecracker\" in the name of the program that it starts, and it is " + binary)
	}
	h.binary, h.jailer, h.caps.Version = binary, jailer, v.String()
	return nil
}

// jailerName is what the jailer demands of the program's file name; it becomes a directory's.
var jailerName = regexp.MustCompile(`\A[A-Za-z0-9._-]*firecracker[A-Za-z0-9._-]*\z`)
