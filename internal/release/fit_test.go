package release_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// files is the file system of an image in memory.
type files map[string]file

type file struct {
	mode     fs.FileMode
	uid, gid uint32
	content  string
}

func (f files) Stat(path string) (release.FileInfo, error) {
	e, ok := f[path]
	if !ok {
		return release.FileInfo{}, fs.ErrNotExist
	}
	return release.FileInfo{Mode: e.mode, UID: e.uid, GID: e.gid}, nil
}

func (f files) Open(path string) (*io.SectionReader, error) {
	e, ok := f[path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NewSectionReader(strings.NewReader(e.content), 0, int64(len(e.content))), nil
}

// elf is the beginning of a program for a machine, with a loader unless it is "".
func elf(machine uint16, loader string) string {
	b := make([]byte, 64+56)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[18:], machine)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	if loader != "" {
		le.PutUint16(b[56:], 1)
		le.PutUint32(b[64:], 3)
		le.PutUint64(b[64+8:], uint64(len(b)))
		le.PutUint64(b[64+32:], uint64(len(loader)+1))
		b = append(append(b, loader...), 0)
	}
	return string(b)
}

const passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n# no:x:5:5\n+nis::::\nbroken\n"

func standard() files {
	return files{
		"/app": {mode: 0o755, content: elf(62, "")}, "/bin/sh": {mode: 0o755, content: elf(62, "/lib/ld.so")}, "/lib/ld.so": {mode: 0o755},
		"/usr/bin/env": {mode: 0o755, content: elf(62, "")}, "/etc/passwd": {mode: 0o644, content: passwd},
		"/etc/group": {mode: 0o644, content: "root:x:0:\napp:x:1000:\nextra:x:50:other,app\n"}, "/etc": {mode: fs.ModeDir | 0o755},
	}
}

func TestCheckImage(t *testing.T) {
	const noRoot = "user = \"1000\"\n"
	for _, tt := range []struct {
		name     string
		manifest string
		image    func(i *release.Image, f files)
		want     string // codes and keys
	}{
		{"good", noRoot, nil, ""},
		{"root by default", "", nil, "W310 user"},
		{"root by name", "", func(i *release.Image, _ files) { i.User = "root:root" }, "W310 user"},
		{"manifest's root is the manifest's warning", "user = \"0\"\n", nil, ""},
		{"nothing to run", noRoot, func(i *release.Image, _ files) { i.Entrypoint = nil }, "E302 entrypoint"},
		{"manifest says what to run", noRoot + "command = [\"app\"]\nworkdir = \"/\"\n", func(i *release.Image, f files) {
			i.Entrypoint, i.Env, f["/usr/bin/app"] = nil, nil, f["/app"]
		}, ""},
		{"manifest's entrypoint clears Cmd", noRoot + "entrypoint = [\"/nope\"]\n", func(i *release.Image, _ files) { i.Cmd = []string{"x"} }, "E303 entrypoint"},
		{"command after entrypoint is no program", noRoot + "command = [\"/nope\"]\n", nil, ""},
		{"not in PATH", noRoot + "entrypoint = [\"app\"]\n", nil, "E303 entrypoint"},
		{"in the manifest's PATH", noRoot + "entrypoint = [\"app\"]\nenv.PATH = \"/none::/\"\n", nil, ""},
		{"in the image's PATH", noRoot + "entrypoint = [\"app\"]\n", func(i *release.Image, _ files) { i.Env = []string{"PATH=/x:/"} }, ""},
		{"relative to the working directory", noRoot + "entrypoint = [\"./app\"]\nworkdir = \"/srv\"\n", func(_ *release.Image, f files) { f["/srv/app"] = f["/app"] }, ""},
		{"a directory", noRoot + "entrypoint = [\"/etc\"]\n", nil, "E304 entrypoint"},
		{"not executable", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o644, content: elf(62, "")} }, "E304 entrypoint"},
		{"executable by others only", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o744, uid: 5, gid: 5, content: elf(62, "")} }, "E304 entrypoint"},
		{"executable by a group of the user", "user = \"app\"\n", func(_ *release.Image, f files) { f["/app"] = file{mode: 0o710, gid: 50, content: elf(62, "")} }, ""},
		{"executable by root", "user = \"root\"\n", func(_ *release.Image, f files) { f["/app"] = file{mode: 0o100, uid: 9, content: elf(62, "")} }, ""},
		{"script", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: "#! /bin/sh -e\n"} }, ""},
		{"script without its interpreter", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: "#!/bin/bash\n"} }, "E305 entrypoint"},
		{"script from Windows", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: "#!/bin/sh\r\necho\r\n"} }, "E305 entrypoint"},
		{"script with nothing", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: "#!\n"} }, "E305 entrypoint"},
		{"env finds it", noRoot, func(_ *release.Image, f files) {
			f["/app"], f["/bin/python3"] = file{mode: 0o755, content: "#!/usr/bin/env python3\n"}, file{mode: 0o755}
		}, ""},
		{"env does not", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: "#!/usr/bin/env python3\n"} }, "E305 entrypoint"},
		{"no program", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: "echo hello\n"} }, "E306 entrypoint"},
		{"empty", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755} }, "E306 entrypoint"},
		{"another machine", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: elf(183, "")} }, "E306 entrypoint"},
		{"no loader", noRoot, func(_ *release.Image, f files) { f["/app"] = file{mode: 0o755, content: elf(62, "/lib/ld-musl.so")} }, "E305 entrypoint"},
		{
			"probe", noRoot + "[health.live]\ntype = \"exec\"\ncommand = [\"curl\"]\n[health.ready]\ntype = \"exec\"\ncommand = [\"/nope\"]\n[rollout.before]\ncommand = [\"/etc\"]\n", nil,
			"E303 health.live.command, E303 health.ready.command, E304 rollout.before.command",
		},
		{"unknown user", "user = \"web\"\n", nil, "E307 user"},
		{"unknown user of the image", "", func(i *release.Image, _ files) { i.User = "no" }, "E307 user"},
		{"unknown group", "user = \"app:web\"\n", nil, "E308 user"},
		{"number without an entry", "user = \"77:88\"\n", nil, ""},
		{"passwd is a directory", noRoot, func(_ *release.Image, f files) { f["/etc/passwd"] = file{mode: fs.ModeDir} }, "E307 user"},
		{"no passwd", noRoot, func(_ *release.Image, f files) { delete(f, "/etc/passwd"); delete(f, "/etc/group") }, ""},
		{"huge group", noRoot, func(_ *release.Image, f files) {
			f["/etc/group"] = file{mode: 0o644, content: strings.Repeat("x", 9<<20)}
		}, "E308 user"},
		{"signal", noRoot, func(i *release.Image, _ files) { i.StopSignal = "SIGNOPE" }, "E309 stop.signal"},
		{"signal that the manifest replaces", noRoot + "stop.signal = \"SIGINT\"\n", func(i *release.Image, _ files) { i.StopSignal = "99" }, ""},
		{"real-time signal", noRoot, func(i *release.Image, _ files) { i.StopSignal = "SIGRTMIN+3" }, ""},
		{"workdir is a file", noRoot + "workdir = \"/app\"\n", nil, "E310 workdir"},
		{"ignored", noRoot, func(i *release.Image, _ files) {
			i.ExposedPorts, i.Volumes, i.Labels = []string{"8080/tcp", "53/udp"}, []string{"/data"}, []string{"a", "b"}
			i.Healthcheck, i.Shell, i.Env = true, true, []string{"PINNACE_HOST=evil", "X"}
		}, "W300 ports, W300 ports, W301 volumes, W302 health, W303 , W304 , W311 env"},
		{"architecture", noRoot + "arch = [\"amd64\", \"arm64\"]\n", nil, "E300 arch"},
		{"refused config", noRoot, func(i *release.Image, _ files) { i.Refused = errors.New("Env has an entry without a name") }, "E301 "},
		{"files unknown", "user = \"nobody\"\nentrypoint = [\"/nope\"]\n", func(i *release.Image, _ files) { i.Files = nil }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := standard()
			i := release.Image{Architecture: "amd64", Entrypoint: []string{"/app"}, Files: f}
			if tt.image != nil {
				tt.image(&i, f)
			}
			problems := release.CheckImage(parse(t, smallest+tt.manifest), []release.Image{i})
			var got []string
			for _, p := range problems {
				got = append(got, p.Code+" "+p.Key)
				if p.Message == "" || (p.Severity == manifest.SeverityError) != (p.Code[0] == 'E') {
					t.Errorf("%+v", p)
				}
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got  %s\nwant %s\n%v", s, tt.want, problems)
			}
		})
	}
}

func parse(t *testing.T, src string) *manifest.Manifest {
	t.Helper()
	m, problems := manifest.Parse([]byte(src))
	if m == nil {
		t.Fatalf("%v\n%s", problems.Err(), src)
	}
	return m
}

// What is wrong for one architecture only says which.
func TestCheckImageNamesArchitectures(t *testing.T) {
	good, bad := standard(), standard()
	bad["/app"] = file{mode: 0o755, content: elf(62, "")}
	images := []release.Image{
		{Architecture: "amd64", Entrypoint: []string{"/app"}, Files: good, User: "no"},
		{Architecture: "arm64", Entrypoint: []string{"/app"}, Files: bad, User: "no"},
	}
	var b bytes.Buffer
	release.CheckImage(parse(t, smallest), images).Render(&b, "pinnace.toml", nil, manifest.RenderOptions{})
	if s := b.String(); strings.Count(s, "E307") != 1 || !strings.Contains(s, "E306 entrypoint: for arm64: /app is not for arm64") {
		t.Errorf("got\n%s", s)
	}
	// An architecture that the manifest does not want is not judged.
	if p := release.CheckImage(parse(t, smallest+"arch = [\"amd64\"]\nuser = \"1\"\n"), images); len(p) != 0 {
		t.Errorf("got %v", p)
	}
}

func TestImageCodesAreListed(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range manifest.Codes() {
		seen[c.Code] = true
	}
	for _, c := range slices.Concat(release.ImageCodes(), release.EnvironmentCodes()) {
		if seen[c.Code] || c.Meaning == "" {
			t.Errorf("%s is there twice, or means nothing", c.Code)
		}
		seen[c.Code] = true
	}
}

// Programs and account files are an image's, and may be anything.
func FuzzCheckImage(f *testing.F) {
	f.Add([]byte(elf(62, "/lib/ld.so")), []byte(passwd), "/app", "app:app")
	f.Add([]byte("#!/bin/sh"), []byte(":::::"), "app", "")
	m, _ := manifest.Parse([]byte(smallest))
	f.Fuzz(func(t *testing.T, program, accounts []byte, name, user string) {
		fs := standard()
		fs["/app"] = file{mode: 0o755, content: string(program)}
		fs["/etc/passwd"] = file{mode: 0o644, content: string(accounts)}
		fs["/etc/group"] = file{mode: 0o644, content: string(accounts)}
		for _, p := range release.CheckImage(m, []release.Image{{
			Architecture: "amd64", Entrypoint: []string{name}, User: user, StopSignal: user, Labels: []string{name}, Files: fs,
		}}) {
			if s := p.String(); strings.ContainsAny(s, "\x00\x1b\n\r") || len(s) > 4096 {
				t.Errorf("not fit for a terminal: %q", fmt.Sprint(p))
			}
		}
	})
}

func TestImageCodesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/specs/release.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(release.ImageCodes(), release.EnvironmentCodes()) {
		if row := "| `" + c.Code + "` | " + c.Meaning + " |\n"; !strings.Contains(string(page), row) {
			t.Errorf("docs/specs/release.md does not have the row %s", row)
		}
	}
}
