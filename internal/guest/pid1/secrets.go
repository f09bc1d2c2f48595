//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// A secret is a bundle as the workload sees it. Owned by the steps of the boot, and by serveBundles afterwards.
//
// Its files are on a tmpfs of its own. With format "dir" that is mounted at the path:
//
//	..1/KEY            the files of a version
//	..data -> ..1      changed by a rename, so that all files change at one moment
//	KEY -> ..data/KEY
//
// With the other formats it is mounted below /run/pinnace, and the path is a link to the one file on it, which another
// takes the place of by a rename.
type secret struct {
	guest.Secret
	root     string // of the tmpfs; "" without files
	uid, gid uint32
	written  int // how many versions were
}

const (
	secretsDir = etcSource + "/secrets"
	dataLink   = "..data"
	fileName   = "data"
	tempPrefix = "..new-"
	// earlierStays is for how long the files of the version before are left for those who have found them just then.
	earlierStays = 10 * time.Second
)

// PlaceSecrets puts the bundles of the configuration where the workload expects them.
func (b *Boot) PlaceSecrets() error {
	bundles := b.control.takeBundles()
	for _, s := range b.config.Secrets {
		bundle, ok := bundles[s.Bundle]
		if !ok || bundle.Version != s.Version {
			return fmt.Errorf("bundle %s: the host has not sent version %d of it", s.Bundle, s.Version)
		}
		sec := &secret{Secret: s}
		if err := b.placeSecret(sec, bundle.Values); err != nil {
			return fmt.Errorf("bundle %s: %w", s.Bundle, err)
		}
		b.secrets = append(b.secrets, sec)
	}
	return nil
}

func (b *Boot) placeSecret(s *secret, values guest.SecretValues) error {
	variables, err := secretVariables(s.Env, values)
	if err != nil {
		return err
	}
	b.secretEnv = append(b.secretEnv, variables...)
	if s.Path == "" {
		return nil
	}
	if err := b.ownSecret(s); err != nil {
		return err
	}
	if err := s.mount(); err != nil {
		return err
	}
	return s.write(values)
}

// secretVariables are the variables that keys of a bundle become.
func secretVariables(keys []string, values guest.SecretValues) ([]string, error) {
	var all []string
	for _, key := range keys {
		value, ok := values[key]
		switch {
		case !ok:
			return nil, fmt.Errorf("it has no key %s, which is to be a variable of the process", key)
		case slices.Contains(value, 0):
			return nil, fmt.Errorf("the value of %s has a NUL in it, which no variable can have; let it be a file", key)
		}
		all = append(all, key+"="+string(value))
	}
	return all, nil
}

// ownSecret finds the owner of the files.
func (b *Boot) ownSecret(s *secret) error {
	s.uid, s.gid = b.user.uid, b.user.gid
	if s.Owner == "" {
		return nil
	}
	u, err := lookUpUser(s.Owner)
	if err != nil {
		return fmt.Errorf("owner: %w", err)
	}
	s.uid, s.gid = u.uid, u.gid
	return nil
}

// mount makes the tmpfs and shows it at the path.
func (s *secret) mount() error {
	if s.Format == guest.FormatDir {
		place, real, _, err := mountPoint("/", s.Path)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Path, err)
		}
		defer closeFD(place)
		s.root = real
		return s.mountAt(fmt.Sprintf("/proc/self/fd/%d", place))
	}
	s.root = path.Join(secretsDir, s.Bundle)
	if err := makeDir(s.root); err != nil {
		return err
	}
	if err := s.mountAt(s.root); err != nil {
		return err
	}
	return s.link()
}

// mountAt mounts the tmpfs. Its size is what the versions that are there at once can take at most. Its root stays PID 1's
// own: nobody without its rights can put something there for it to fall over. So everybody sees the names of keys.
func (s *secret) mountAt(target string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	const options = "mode=0755,size=16m,nr_inodes=8192"
	err := unix.Mount("tmpfs", target, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) { // a kernel without noswap; no VM has swap unless its workload makes some
		err = unix.Mount("tmpfs", target, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mount memory for secrets at %s: %w", s.Path, err)
	}
	return nil
}

// link makes the path a link to the file. A file of the image that is there is replaced.
func (s *secret) link() error {
	parent, real, _, err := mountPointOrRoot("/", path.Dir(path.Clean("/"+s.Path)))
	if err != nil {
		return fmt.Errorf("%s: %w", s.Path, err)
	}
	defer closeFD(parent)
	base := path.Base(path.Clean("/" + s.Path))
	err = unix.Unlinkat(parent, base, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		if errors.Is(err, unix.EISDIR) {
			return fmt.Errorf("the image has a directory at %s, where a file is to be", s.Path)
		}
		return fmt.Errorf("replace what the image has at %s: %w", s.Path, err)
	}
	if err := unix.Symlinkat(path.Join(s.root, fileName), parent, base); err != nil {
		return &os.PathError{Op: "link", Path: path.Join(real, base), Err: err}
	}
	return nil
}

// mountPointOrRoot is mountPoint, and the root directory as well: to put something into it.
func mountPointOrRoot(root, target string) (fd int, real string, made bool, err error) {
	if path.Clean("/"+target) == "/" {
		fd, err = unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return fd, "/", false, err
	}
	return mountPoint(root, target)
}

// dirMode lets those enter a directory who may read the files in it.
func (s *secret) dirMode() uint32 { return s.Mode | s.Mode&0o444>>2 }

// write puts a version in place. Whoever reads meanwhile sees all of the version before or all of this one.
func (s *secret) write(values guest.SecretValues) error {
	s.written++
	if s.Format == guest.FormatDir {
		return s.writeDir(values)
	}
	content, err := renderSecrets(s.Format, values)
	if err != nil {
		return err
	}
	temp := filepath.Join(s.root, tempPrefix+strconv.Itoa(s.written))
	if err := s.writeFile(temp, content); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return os.Rename(temp, filepath.Join(s.root, fileName))
}

// writeFile writes one file, which nobody may open before it is whole.
func (s *secret) writeFile(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chown(int(s.uid), int(s.gid)), unix.Fchmod(int(f.Fd()), s.Mode&0o777))
	return errors.Join(err, f.Close())
}

func (s *secret) writeDir(values guest.SecretValues) (err error) {
	version := ".." + strconv.Itoa(s.written)
	dir := filepath.Join(s.root, version)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := s.writeFile(filepath.Join(dir, key), values[key]); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chown(dir, int(s.uid), int(s.gid)), unix.Chmod(dir, s.dirMode())); err != nil {
		return err
	}
	before, err := os.Readlink(filepath.Join(s.root, dataLink))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := s.replaceLink(version, dataLink); err != nil {
		return err
	}
	s.linkKeys(values)
	s.removeOthers(version, before)
	return nil
}

// replaceLink makes name a link to target, at one moment.
func (s *secret) replaceLink(target, name string) error {
	temp := filepath.Join(s.root, tempPrefix+name)
	if err := os.Remove(temp); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(s.root, name))
}

// linkKeys makes the links of keys that are new and removes those of keys that are gone. The version is in place
// already, so that what goes wrong, which only a workload's own doing could bring about, is worth a line.
func (s *secret) linkKeys(values guest.SecretValues) {
	for key := range values {
		want := path.Join(dataLink, key)
		if is, err := os.Readlink(filepath.Join(s.root, key)); err == nil && is == want {
			continue
		}
		if err := s.replaceLink(want, key); err != nil {
			logf(logError, "secrets: %v", err)
		}
	}
	found, err := os.ReadDir(s.root)
	if err != nil {
		logf(logError, "secrets: %v", err)
	}
	for _, e := range found {
		_, wanted := values[e.Name()]
		if wanted || strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if err := os.Remove(filepath.Join(s.root, e.Name())); err != nil {
			logf(logError, "secrets: %v", err)
		}
	}
}

// removeOthers removes all versions but the newest and, for a while, the one before.
func (s *secret) removeOthers(newest, before string) {
	found, err := os.ReadDir(s.root)
	if err != nil {
		logf(logError, "secrets: %v", err)
	}
	for _, e := range found {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), "..") || e.Name() == newest {
			continue
		}
		dir := filepath.Join(s.root, e.Name())
		remove := func() {
			if err := os.RemoveAll(dir); err != nil {
				logf(logError, "secrets: %v", err)
			}
		}
		if e.Name() != before {
			remove()
			continue
		}
		time.AfterFunc(earlierStays, func() { _ = recovered(func() error { remove(); return nil }) })
	}
}

// serveBundles puts further versions in place, one after the other.
func (b *Boot) serveBundles() {
	for m := range b.control.bundles {
		answer := guest.Bundled{Name: m.Name, Version: m.Version}
		if err := recovered(func() error { return b.replaceSecret(m) }); err != nil {
			answer.Error = err.Error()
		}
		b.control.trySend(answer)
	}
}

func (b *Boot) replaceSecret(m guest.Bundle) error {
	at := slices.IndexFunc(b.secrets, func(s *secret) bool { return s.Bundle == m.Name })
	if at < 0 {
		return fmt.Errorf("the workload has no bundle %s", m.Name)
	}
	s := b.secrets[at]
	if s.Version == m.Version {
		return nil // the answer was lost on its way to the host
	}
	signal, err := parseSignal(m.Signal)
	if err != nil {
		return err
	}
	if s.root != "" {
		if err := s.write(m.Values); err != nil {
			return err
		}
	}
	s.Version = m.Version
	if m.Signal == "" {
		return nil
	}
	if err := b.processes.signal(b.main, signal); err != nil {
		// The files are what they should be. A host that asked again would hear that all is well.
		logf(logError, "tell the workload of its new secrets: %v", err)
	}
	return nil
}
