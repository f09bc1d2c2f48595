package vmtest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// suiteGuest does what testdata/init does.
func suiteGuest(_ context.Context, g *vmtest.FakeGuest) vmtest.End {
	fmt.Fprintln(g.Control, "hello")
	for in := bufio.NewScanner(g.Control); in.Scan(); {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "echo":
			fmt.Fprintln(g.Control, arg)
		case "logs":
			fmt.Fprintln(g.Logs, arg)
		case "console":
			fmt.Fprintln(g.Console, arg)
			fmt.Fprintln(g.Control, "ok")
		case "disks":
			fmt.Fprintln(g.Control, listDisks(g.Spec))
		case "sync":
			fmt.Fprintln(g.Control, writeDisk(g.Spec, arg))
		case "reboot":
			return vmtest.End{}
		case "panic":
			return vmtest.End{Panic: "Attempted to kill init!"}
		}
	}
	return vmtest.End{}
}

func listDisks(spec vm.Spec) string {
	var out []string
	for _, d := range spec.Disks {
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		info, err := os.Stat(d.Path)
		if err != nil {
			return err.Error()
		}
		out = append(out, fmt.Sprintf("%s %d %s", d.ID, info.Size()/512, mode))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func writeDisk(spec vm.Spec, id string) string {
	at := slices.IndexFunc(spec.Disks, func(d vm.Disk) bool { return d.ID == id })
	f, err := os.OpenFile(spec.Disks[at].Path, os.O_WRONLY, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("pinnace!", 64)), 0); err != nil {
		return err.Error()
	}
	return "ok"
}

func fakeSpec(t *testing.T) vm.Spec {
	t.Helper()
	spec, err := vmtest.FakeSpec(t.TempDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestFakeConforms(t *testing.T) {
	vmtest.Suite{Driver: vmtest.NewFake(suiteGuest), Spec: fakeSpec, Patience: 10 * time.Second}.Run(t)
}

func TestFakeSpecIsAlone(t *testing.T) {
	dir := t.TempDir()
	a, err := vmtest.FakeSpec(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := vmtest.FakeSpec(dir, "b")
	if err != nil {
		t.Fatal(err)
	}
	if a.Dir == b.Dir || filepath.Dir(a.Dir) != dir {
		t.Errorf("got %s and %s", a.Dir, b.Dir)
	}
}
