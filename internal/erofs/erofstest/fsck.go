package erofstest

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
)

// DefaultFsck is where scripts/get-erofs-utils.sh puts a new fsck.erofs.
const DefaultFsck = "/var/lib/pinnace/erofs-utils/fsck.erofs"

// Fsck finds an fsck.erofs that knows blocks of that size, or skips the test: PINNACE_FSCK_EROFS names one, and
// otherwise it is the one at DefaultFsck or the system's. Before 1.6 they know blocks of 4 KiB only.
func Fsck(t *testing.T, block int) string {
	t.Helper()
	path := os.Getenv("PINNACE_FSCK_EROFS")
	if path == "" {
		if path = DefaultFsck; exec.Command(path, "-V").Run() != nil {
			var err error
			if path, err = exec.LookPath("fsck.erofs"); err != nil {
				t.Skip("needs fsck.erofs: ", err)
			}
		}
	}
	out, err := exec.Command(path, "-V").CombinedOutput() //nolint:gosec // who runs the test names the tool
	if err != nil {
		t.Fatalf("%s -V: %v\n%s", path, err, out)
	}
	version := regexp.MustCompile(`(\d+)\.(\d+)`).FindSubmatch(out)
	if version == nil {
		t.Fatalf("%s tells no version: %s", path, out)
	}
	major, _ := strconv.Atoi(string(version[1]))
	minor, _ := strconv.Atoi(string(version[2]))
	if block != 4096 && major == 1 && minor < 6 {
		t.Skipf("%s is %s, and knows blocks of 4 KiB only: scripts/get-erofs-utils.sh gets a newer one", path, version[0])
	}
	return path
}
