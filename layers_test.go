package pinnace_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pinnacehq/pinnace"

// The layers, from the top. A package may import those of its own layer only where allowed says so, and
// those of lower layers freely.
var layers = []struct {
	name     string
	packages []string
}{
	{"cmd", []string{"cmd/pinnace", "cmd/pinnace/initbin", "cmd/pinnace-init", "cmd/pinnace-holder"}},
	{"actors", []string{"internal/server", "internal/agent", "internal/local"}},
	{"mechanisms", []string{
		"internal/eventlog", "internal/registry", "internal/inflate", "internal/erofs", "internal/sandbox", "internal/image", "internal/kernel",
		"internal/vm", "internal/guest", "internal/network", "internal/proxy",
		"internal/volume", "internal/identity", "internal/secret", "internal/keyring", "internal/feed",
	}},
	{"values", []string{
		"internal/manifest", "internal/release", "internal/importer", "internal/fleet", "internal/scheduler", "internal/rollout",
	}},
	{"ground", []string{"internal/durable", "internal/failpoint", "internal/api"}},
}

// forbidden are the imports that would break something that the layers alone do not say. A package stands
// for those below it too.
var forbidden = []struct {
	from, to, why string
}{
	{"internal/manifest", "internal/fleet", "a manifest is read without knowing what runs"},
	{"internal/manifest", "internal/release", "a Release names a manifest, not the other way round"},
	{"internal/release", "internal/fleet", "a Release is an identity; what becomes of it is the fleet's"},
	{"internal/server", "internal/importer", "other platforms' files are the CLI's to read"},
	{"internal/agent", "internal/importer", "other platforms' files are the CLI's to read"},
	{"internal/fleet", "internal/scheduler", "the fold says what is, never what should be"},
	{"internal/fleet", "internal/rollout", "the fold says what is, never what should be"},
	{"internal/server", "internal/agent", "server and agent meet in the API only, or they could not be of two versions"},
	{"internal/agent", "internal/server", "server and agent meet in the API only, or they could not be of two versions"},
	{"internal/feed", "internal/fleet", "what is said is the server's business; a feed only says it"},
	{"internal/agent", "internal/eventlog", "a slim agent must not link the databases"},
	{"internal/agent", "internal/registry", "which registry client there is, is cmd's business; the agent pulls from a source"},
	{"internal/agent", "internal/fleet", "an agent acts on its assignments alone"},
	{"internal/server", "internal/eventlog/sqlite", "only cmd names a concrete engine"},
	{"internal/server", "internal/eventlog/postgres", "only cmd names a concrete engine"},
	{"internal/server", "internal/secret/postgres", "only cmd names a concrete store"},
	{"internal/server", "internal/identity/lastuse/postgres", "only cmd names a concrete store"},
	{"internal/server", "internal/keyring", "where keys lie is cmd's to know; the server is given what it needs"},
	{"internal/agent", "internal/secret", "an agent gets what it needs opened, and has no key"},
	{"internal/agent", "internal/vm/qemu", "only cmd names a concrete driver"},
	{"internal/vm", "internal/volume", "a machine has disks; what is on them is not its business"},
	{"internal/agent", "internal/vm/firecracker", "only cmd names a concrete driver"},
	{"internal/vm/qemu", "internal/vm/firecracker", "drivers may be alike, but know nothing of each other"},
	{"internal/vm/firecracker", "internal/vm/qemu", "drivers may be alike, but know nothing of each other"},
	{"internal/vm", "internal/guest", "a machine carries bytes; the protocol is not its business"},
	{"internal/vm", "internal/image", "a machine has disks; what is on them is not its business"},
	{"internal/image", "internal/registry", "a store is given its blobs; where from is not its business"},
	{"internal/registry", "internal/registry/embedded", "the client must not link a registry"},
}

// pure are packages that compute and touch nothing outside: no files, processes, network, clock or chance.
var pure = []string{"internal/manifest", "internal/release", "internal/importer", "internal/fleet", "internal/scheduler", "internal/rollout"}

// impure are the standard packages that pure ones do without.
var impure = []string{"os", "os/exec", "net", "net/http", "syscall", "math/rand", "math/rand/v2", "crypto/rand", "database/sql"}

// small are programs of which many run, what they are made of besides the standard library, and why that is all.
var small = map[string]struct {
	packages []string
	why      string
}{
	"cmd/pinnace-init": {
		[]string{"golang.org/x/sys", module + "/internal/guest", module + "/cmd/pinnace-init"},
		"it is process 1 of every guest and has to stay small",
	},
	"cmd/pinnace-holder": {
		[]string{"golang.org/x/sys", module + "/internal/vm/holder", module + "/cmd/pinnace-holder"},
		"one of it runs beside every monitor",
	},
}

type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

func list(t *testing.T, args ...string) []goPackage {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,Deps"}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// within tells whether path is the package pkg of this module or one below it.
func within(path, pkg string) bool {
	full := module + "/" + pkg
	return path == full || strings.HasPrefix(path, full+"/")
}

func layerOf(path string) int {
	for i, l := range layers {
		if slices.ContainsFunc(l.packages, func(pkg string) bool { return within(path, pkg) }) {
			return i
		}
	}
	return -1
}

func TestImportsGoOneWay(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command: ", err)
	}
	for _, p := range list(t, "./cmd/...", "./internal/...") {
		from := layerOf(p.ImportPath)
		if from < 0 {
			t.Errorf("%s is in no layer; say in layers_test.go where it belongs", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module+"/") {
				continue
			}
			to := layerOf(imported)
			if to < from {
				t.Errorf("%s (%s) imports %s (%s): arrows go down only", p.ImportPath, layers[from].name, imported, layerName(to))
			}
			// Mechanisms know nothing of the platform, although values are below them.
			if layers[from].name == "mechanisms" && layerName(to) == "values" {
				t.Errorf("%s imports %s: mechanisms are told what to do in their own terms", p.ImportPath, imported)
			}
			for _, f := range forbidden {
				if within(p.ImportPath, f.from) && within(imported, f.to) && !within(p.ImportPath, f.to) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imported, f.why)
				}
			}
		}
	}
}

func layerName(i int) string {
	if i < 0 {
		return "no layer"
	}
	return layers[i].name
}

func TestValuesArePure(t *testing.T) {
	for _, pkg := range pure {
		for _, p := range list(t, "./"+pkg) {
			for _, imported := range p.Imports {
				if slices.Contains(impure, imported) {
					t.Errorf("%s imports %s: a value does no I/O, reads no clock and draws no chance", p.ImportPath, imported)
				}
			}
		}
	}
}

func TestSmallPrograms(t *testing.T) {
	for program, made := range small {
		for _, p := range list(t, "-deps", "./"+program) {
			if p.Standard || slices.ContainsFunc(made.packages, func(allowed string) bool {
				return p.ImportPath == allowed || strings.HasPrefix(p.ImportPath, allowed+"/")
			}) {
				continue
			}
			t.Errorf("%s links %s: %s", program, p.ImportPath, made.why)
		}
	}
}

// A role must be one main away from a slim binary of its own.
func TestRolesCanBeSlim(t *testing.T) {
	for _, role := range []struct {
		pkg     string
		without []string
	}{
		{"internal/agent", []string{"modernc.org/sqlite", "github.com/distribution/distribution/v3", "github.com/jackc/pgx/v5"}},
		{"internal/server", []string{"github.com/vishvananda/netlink", "github.com/google/nftables", "github.com/distribution/distribution/v3", "modernc.org/sqlite", "github.com/jackc/pgx/v5"}},
	} {
		packages := list(t, "./"+role.pkg)
		for _, dep := range packages[0].Deps {
			for _, banned := range role.without {
				if dep == banned || strings.HasPrefix(dep, banned+"/") {
					t.Errorf("%s links %s, which its role has no use for", role.pkg, dep)
				}
			}
		}
	}
}
