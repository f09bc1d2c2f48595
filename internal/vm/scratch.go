package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// Bounds of a scratch disk in bytes.
const (
	MinScratch = templateSize
	MaxScratch = 16 << 40 // of ext4 with 32-bit group arithmetic at 4 KiB blocks
)

const (
	templateSize = 64 << 20
	// templateName changes with the recipe, so that an older program's template is not taken.
	templateName = "scratch-1.ext4"
)

// Scratch makes scratch disks: empty ext4 file systems that live as long as one machine. They are copies of one
// template, which is made once per directory; a copy is a clone where the file system can do that, and
// sparse elsewhere. It is longer than the file system in it, which the guest grows.
//
// Its methods may be called concurrently, and by several processes on one directory.
type Scratch struct {
	dir string

	mu    sync.Mutex
	ready bool // guarded by mu: the template was seen
}

// NewScratch returns a maker of scratch disks that keeps its template in dir, which is created when missing.
// Disks are made fastest when they go to dir's file system.
func NewScratch(dir string) *Scratch {
	return &Scratch{dir: dir}
}

// Make creates the disk at path, size bytes long, rounded up to 4 KiB. A file that is there is replaced; the
// disk is not made durable. The error is a *MissingError when mkfs.ext4 is needed and not there.
func (s *Scratch) Make(ctx context.Context, path string, size int64) error {
	if size < MinScratch || size > MaxScratch {
		return fmt.Errorf("make scratch disk: %d bytes are not in %d to %d", size, int64(MinScratch), int64(MaxScratch))
	}
	template, err := s.template(ctx)
	if err != nil {
		return fmt.Errorf("make the template of scratch disks: %w", err)
	}
	if err := copyTemplate(ctx, template, path, (size+4095)&^4095); err != nil {
		return fmt.Errorf("make scratch disk: %w", err)
	}
	return nil
}

// template returns the path of the template, and makes it first when it is not there.
func (s *Scratch) template(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := filepath.Join(s.dir, templateName)
	if s.ready {
		return path, nil
	}
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = makeTemplate(ctx, path)
	}
	s.ready = err == nil
	return path, err
}

func makeTemplate(ctx context.Context, path string) error {
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := durable.CreateTemp(filepath.Dir(path), 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(templateSize); err != nil {
		return errors.Join(err, durable.Discard(f))
	}
	out, err := exec.CommandContext(ctx, mkfs, mkfsArgs(f.Name())...).CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w: %.300s", mkfs, err, out), durable.Discard(f))
	}
	return durable.Commit(f, path)
}

// mkfsArgs is the recipe. There is no journal, because the disk dies with its machine; no inode for resizing, which would
// take space for a growth that is known to come; and nothing left for the guest's kernel to do later. Block size and
// inode ratio are given because mkfs picks those of a floppy disk for something this small: 8192 inodes in
// the first group of blocks make it one for 16 KiB of the groups that are added.
func mkfsArgs(file string) []string {
	return []string{
		"-q", "-F", "-m", "0", "-b", "4096", "-i", "8192", "-I", "256",
		"-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0",
		file,
	}
}

// findMkfs looks where Debian has it, too: the PATH of users other than root lacks /sbin.
func findMkfs() (string, error) {
	path, err := exec.LookPath("mkfs.ext4")
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		if p, dirErr := exec.LookPath(filepath.Join(dir, "mkfs.ext4")); dirErr == nil {
			path, err = p, nil
		}
	}
	if err != nil {
		return "", &MissingError{Program: "mkfs.ext4", Package: "e2fsprogs", Err: err}
	}
	return path, nil
}

// copyTemplate makes a copy of template at path and lets it seem size bytes long.
func copyTemplate(ctx context.Context, template, path string, size int64) error {
	src, err := os.Open(template)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dst, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = durable.Copy(ctx, dst, src)
	if err == nil {
		err = dst.Truncate(size)
	}
	err = errors.Join(err, dst.Close())
	if err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
