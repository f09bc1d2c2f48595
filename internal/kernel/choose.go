package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// chosenName is the file in the directory of kernels with the release that somebody has chosen. It is no kernel's name,
// which is a folder's.
const chosenName = "chosen"

const maxRelease = 256

// ErrNotFound is wrapped by Use for a release that is not there.
var ErrNotFound = errors.New("no such kernel")

// ErrChosen is wrapped by the errors of Choose, beside ErrNoKernel, when the kernel that was chosen cannot be used.
var ErrChosen = errors.New("the one that was chosen cannot be used")

// Choose returns the kernel that new VMs boot: the one that Use has chosen, which must be there and fit, or what Find
// finds. Nothing takes the place of a kernel that was chosen: whoever chose it would not notice.
func Choose(dir string) (Source, error) {
	release, err := Chosen(dir)
	if err != nil {
		return Source{}, err
	}
	if release == "" {
		return Find(dir)
	}
	s, err := lookUp(dir, release)
	if err == nil {
		err = s.Check()
	}
	if err != nil {
		return Source{}, fmt.Errorf("%w: %w: %w", ErrNoKernel, ErrChosen, err)
	}
	return s, nil
}

// Chosen is the release that Use has chosen for dir, or nothing.
func Chosen(dir string) (string, error) {
	path := filepath.Join(dir, chosenName)
	b, err := readFile(path, maxRelease)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("see which kernel was chosen: %w", err)
	}
	release := strings.TrimSuffix(string(b), "\n")
	if !validRelease(release) {
		return "", fmt.Errorf("see which kernel was chosen: %s holds %.80q, which is no release", path, b)
	}
	return release, nil
}

// Use chooses the kernel of that release for the VMs that are started from now on, durably. It refuses one that is not
// there, with ErrNotFound, and one that is not fit, with what Check says.
func Use(dir, release string) error {
	s, err := lookUp(dir, release)
	if err != nil {
		return err
	}
	if err := s.Check(); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, chosenName), []byte(release+"\n"), 0o644)
}

// UseNewest takes back what Use has chosen, durably.
func UseNewest(dir string) error {
	err := os.Remove(filepath.Join(dir, chosenName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

func lookUp(dir, release string) (Source, error) {
	if !validRelease(release) {
		return Source{}, fmt.Errorf("%w: %.80q is no release", ErrNotFound, release)
	}
	all, err := List(dir)
	if err != nil {
		return Source{}, err
	}
	for _, s := range all {
		if s.Release == release {
			return s, nil
		}
	}
	return Source{}, fmt.Errorf("%w: %s is not in %s", ErrNotFound, release, dir)
}

// validRelease tells whether a release can be the name of a kernel's folder.
func validRelease(s string) bool {
	return s != "" && filepath.IsLocal(s) && filepath.Base(s) == s && !strings.HasPrefix(s, ".") &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
