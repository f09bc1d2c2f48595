package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// writeKernel makes the folder of a fit kernel, with what origin says.
func writeKernel(t *testing.T, dir, release, origin string, change func(*fake)) Source {
	t.Helper()
	f := newFake(t)
	f.release = release
	f.image = fakeBzImage(release+" (someone)", []byte("0123456789"))
	if change != nil {
		change(f)
	}
	s := f.write(t, dir)
	if origin != "" {
		if err := os.WriteFile(filepath.Join(s.Dir, "origin"), []byte(origin), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestUse(t *testing.T) {
	dir := t.TempDir()
	writeKernel(t, dir, "6.9.3-test", "", nil)
	writeKernel(t, dir, "6.10.1-test", "", nil)
	writeKernel(t, dir, "6.11.0-test", "", func(f *fake) { f.config["EROFS_FS"], f.config["MEMCG"] = "", "" })
	wantChoice := func(want string) {
		t.Helper()
		if s, err := Choose(dir); err != nil || s.Release != want {
			t.Errorf("Choose: got %q, %v, want %s", s.Release, err, want)
		}
	}
	wantChoice("6.10.1-test")
	if err := Use(dir, "6.9.3-test"); err != nil {
		t.Fatal(err)
	}
	wantChoice("6.9.3-test")

	err := Use(dir, "6.11.0-test")
	unfit, ok := errors.AsType[*UnfitError](err)
	if !ok || len(unfit.Problems) != 2 || !strings.Contains(err.Error(), "CONFIG_EROFS_FS") {
		t.Errorf("an unfit one: got %v", err)
	}
	for _, release := range []string{"6.8.0", "", ".", "..", "../6.9.3-test", "6.9.3-test/", ".tmp-x", "chosen", "6.9 3"} {
		if err := Use(dir, release); !errors.Is(err, ErrNotFound) {
			t.Errorf("Use(%q): got %v", release, err)
		}
	}
	wantChoice("6.9.3-test") // what was refused has changed nothing

	if err := os.RemoveAll(filepath.Join(dir, "6.9.3-test")); err != nil {
		t.Fatal(err)
	}
	if s, err := Choose(dir); !errors.Is(err, ErrNoKernel) || !errors.Is(err, ErrChosen) || !errors.Is(err, ErrNotFound) {
		t.Errorf("the chosen one is gone: got %v, %v", s, err)
	}
	for range 2 {
		if err := UseNewest(dir); err != nil {
			t.Fatal(err)
		}
	}
	wantChoice("6.10.1-test")
}

func TestChosenIsRefusedWhenItTurnsUnfit(t *testing.T) {
	dir := t.TempDir()
	s := writeKernel(t, dir, "6.9.3-test", "", nil)
	writeKernel(t, dir, "6.10.1-test", "", nil)
	if err := Use(dir, "6.9.3-test"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.configPath(), []byte("CONFIG_"+archOption[runtime.GOARCH]+"=y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Choose(dir); !errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), "CONFIG_EROFS_FS is not set") {
		t.Errorf("got %v, %v", s, err)
	}
}

func TestChosenIsNoRelease(t *testing.T) {
	for _, text := range []string{"", "\n", "a b\n", "../x\n", strings.Repeat("6", maxRelease+1)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, chosenName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Chosen(dir); err == nil {
			t.Errorf("%.20q: got %q", text, got)
		}
	}
}

// TestFindPrefersTheDistributions: a kernel that was built here needs somebody who chooses it.
func TestFindPrefersTheDistributions(t *testing.T) {
	dir := t.TempDir()
	built := writeKernel(t, dir, "6.12.117-test", "built linux-source-6.12\nversion 6.12.117-1\nsha256 00\n", nil)
	if o := built.Origin(); !o.Built || o.String() != "built from linux-source-6.12 6.12.117-1" {
		t.Errorf("got %+v", o)
	}
	if s, err := Find(dir); err != nil || s.Release != "6.12.117-test" {
		t.Errorf("the only one: got %v, %v", s, err)
	}
	stock := writeKernel(t, dir, "6.12.95-test", "package linux-image-x\nversion 6.12.95-1\n", nil)
	if o := stock.Origin(); o.Built || o.String() != "linux-image-x 6.12.95-1" {
		t.Errorf("got %+v", o)
	}
	if s, err := Find(dir); err != nil || s.Release != "6.12.95-test" {
		t.Errorf("got %v, %v", s, err)
	}
	if err := Use(dir, "6.12.117-test"); err != nil {
		t.Fatal(err)
	}
	if s, err := Choose(dir); err != nil || s.Release != "6.12.117-test" {
		t.Errorf("got %v, %v", s, err)
	}
	size, sum, err := stock.Usage()
	if image, readErr := os.ReadFile(stock.Image()); err != nil || readErr != nil || size <= int64(len(image)) || sum != hash(image) {
		t.Errorf("got %d bytes, %s, %v", size, sum, errors.Join(err, readErr))
	}
}

// TestBuiltKernelFragment: what scripts/build-kernel.sh is told to build has what guests need.
func TestBuiltKernelFragment(t *testing.T) {
	dir := filepath.Join("..", "..", "scripts")
	b, err := os.ReadFile(filepath.Join(dir, "kernel-amd64.config"))
	if err != nil {
		t.Fatal(err)
	}
	s := Source{Release: "6.12.0-fragment", Dir: t.TempDir()}
	if err := os.WriteFile(s.configPath(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := s.readConfig()
	if err != nil {
		t.Fatal(err)
	}
	// The architecture is that of the build, not of the fragment.
	if missing := missingOptions(config, "amd64"); len(missing) > 0 {
		t.Errorf("missing: %v", missing)
	}
	for _, o := range options {
		if config[o.name] != "y" && (o.arch == "" || o.arch == "amd64") {
			t.Errorf("CONFIG_%s is %q, want y: there are no modules", o.name, config[o.name])
		}
	}
}

// TestBuiltKernelIsProtected: what protects Debian's kernel from its own processor protects ours.
func TestBuiltKernelIsProtected(t *testing.T) {
	dir := os.Getenv("PINNACE_KERNELS")
	if dir == "" {
		dir = "/var/lib/pinnace/kernels"
	}
	stock, err := Find(dir)
	if err != nil || stock.Origin().Built || runtime.GOARCH != "amd64" {
		t.Skipf("needs Debian's kernel for amd64 in %s (PINNACE_KERNELS): %v", dir, err)
	}
	theirs, err := stock.readConfig()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join("..", "..", "scripts", "kernel-amd64.config"))
	if err != nil {
		t.Fatal(err)
	}
	delete(theirs, "MITIGATION_VMSCAPE") // protects a host's programs from its guests
	for name, value := range theirs {
		if strings.HasPrefix(name, "MITIGATION_") && value == "y" && !strings.Contains(string(b), "\nCONFIG_"+name+"=y\n") {
			t.Errorf("CONFIG_%s is not in the fragment", name)
		}
	}
}
