package firecrackertest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Version is what the stand-ins say they are.
const Version = "1.15.1"

// Main is the stand-in when the program was started as one; ok tells whether it was. Guests are found by name.
func Main(guests map[string]Guest) (code int, ok bool) {
	switch filepath.Base(os.Args[0]) {
	case "jailer":
		return jailerMain(os.Args[1:], guests), true
	case "firecracker":
		return runFirecracker(os.Args[1:], guests, nil), true
	}
	return 0, false
}

// Install gives the running test program the names of Firecracker and its jailer in a directory of the test.
func Install(t testing.TB) (firecracker, jailer string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"firecracker", "jailer"} {
		// A symbolic link would be resolved to the program's own name.
		if err := linkOrCopy(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "firecracker"), filepath.Join(dir, "jailer")
}

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755) //nolint:gosec // a program
}

// Initramfs is the content of an initramfs that makes the stand-in play the guest of that name.
func Initramfs(guest string) []byte { return fmt.Appendf(nil, "guest %s\n", guest) }

// Kernel is the content of a kernel that the stand-in takes.
func Kernel() []byte { return []byte("\x7fELF nothing to run\n") }
