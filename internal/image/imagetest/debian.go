package imagetest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Debian is an image whose layers are packages of the distribution that runs here, one each: what they hold, as
// their maintainers made it. It needs apt-get, a mirror, and dpkg-deb; dir is where the packages are put.
func Debian(dir string, packages ...string) (*Builder, error) {
	b := New()
	for _, name := range packages {
		cmd := exec.Command("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("download package %s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
		files, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil || len(files) != 1 {
			return nil, fmt.Errorf("download package %s: %d files, %w", name, len(files), err)
		}
		tar, err := exec.Command("dpkg-deb", "--fsys-tarfile", files[0]).Output()
		if err != nil {
			return nil, fmt.Errorf("unpack package %s: %w", name, err)
		}
		b.RawLayer(tar)
	}
	return b, nil
}

// DebianPackages have some of everything that packages have: set-id programs, hard links, links to directories,
// owners other than root, long lists of files.
func DebianPackages() []string {
	return []string{
		"base-files", "base-passwd", "libc6", "bash", "coreutils", "dash", "passwd", "login", "mount", "util-linux", "sudo",
		"perl-base", "tzdata", "ncurses-base", "ncurses-term", "libpam-modules", "cron", "adduser",
	}
}
