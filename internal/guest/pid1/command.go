//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Exit codes for a command that did not run, as Docker and shells use them.
const (
	exitNotRun        = 125
	exitNotExecutable = 126
	exitNotFound      = 127
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execError says why a command can't be run, with the exit code that stands for it.
type execError struct {
	code int
	msg  string
	err  error
}

func (e *execError) Error() string { return e.msg }
func (e *execError) Unwrap() error { return e.err }

// lookUp finds the file of a command as a shell in the workload would: names without a slash in path, others from dir.
func lookUp(name, path, dir string, u user) (string, error) {
	if name == "" {
		return "", &execError{exitNotFound, "the command is empty", unix.ENOENT}
	}
	if strings.Contains(name, "/") {
		file := name
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		if err := executable(file, u); err != nil {
			return "", lookUpError(file, err)
		}
		return file, nil
	}
	refused := error(nil)
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		file := filepath.Join(d, name)
		err := executable(file, u)
		if err == nil {
			return file, nil
		}
		if refused == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			refused = lookUpError(file, err)
		}
	}
	if refused != nil {
		return "", refused
	}
	return "", &execError{exitNotFound, fmt.Sprintf("command %q is not in the PATH of the image (%s)", name, path), unix.ENOENT}
}

func lookUpError(file string, err error) error {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		err = pathErr.Err
	}
	code := exitNotExecutable
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		code = exitNotFound
	}
	return &execError{code, fmt.Sprintf("run %s: %v", file, err), err}
}

// executable says whether u may execute file, going by its mode: PID 1 itself may execute everything.
func executable(file string, u user) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return &os.PathError{Op: "stat", Path: file, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return unix.EISDIR
	default:
		return unix.EACCES
	}
	bits := st.Mode & 0o111
	switch {
	case u.uid == 0: // any will do
	case u.uid == st.Uid:
		bits &= 0o100
	case u.gid == st.Gid || slices.Contains(u.groups, st.Gid):
		bits &= 0o010
	default:
		bits &= 0o001
	}
	if bits == 0 {
		return unix.EACCES
	}
	return nil
}

// startError explains what the kernel said about a file that was found.
func startError(file string, err error) error {
	var pathErr *os.PathError
	switch {
	case errors.As(err, &pathErr): // the working directory
		return &execError{exitNotRun, err.Error(), err}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return &execError{exitNotFound, fmt.Sprintf("run %s: %v: the file is there, so its interpreter or dynamic loader is missing in the image", file, err), err}
	case errors.Is(err, unix.ENOEXEC):
		return &execError{exitNotExecutable, fmt.Sprintf("run %s: %v: it is for another architecture, or a script without a #! line", file, err), err}
	default:
		return &execError{exitNotExecutable, fmt.Sprintf("run %s: %v", file, err), err}
	}
}

// environment completes what the host gave: the last value of a name wins, entries that are no assignment are left
// out, and PATH, HOSTNAME and HOME are there.
func environment(given []string, hostname, home string) []string {
	var names []string
	values := map[string]string{}
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			names = append(names, name)
		}
		values[name] = value
	}
	set("PATH", defaultPath)
	set("HOSTNAME", hostname)
	set("HOME", home)
	for _, e := range given {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.ContainsRune(e, 0) || (name == "HOME" && value == "") {
			continue
		}
		set(name, value)
	}
	env := make([]string, len(names))
	for i, name := range names {
		env[i] = name + "=" + values[name]
	}
	return env
}

// lookEnv returns the value of name in env.
func lookEnv(env []string, name string) string {
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}
