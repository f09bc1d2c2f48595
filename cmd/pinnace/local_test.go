package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func TestParseDotenv(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"":                                {},
		"\n# comment\n  \nA=1\n":          {"A": "1"},
		"\uFEFFA=1":                       {"A": "1"},
		"export A = two words \r\nB=":     {"A": "two words", "B": ""},
		"A=a=b#c # d":                     {"A": "a=b#c # d"},
		`A="a\nb\t\\\"\$x"`:               {"A": "a\nb\t\\\"$x"},
		`A='a\nb"'`:                       {"A": `a\nb"`},
		"tls.key=x\n0=y":                  {"tls.key": "x", "0": "y"},
		"A=$HOME ${B} $(rm)\nB=`ls`\nC=é": {"A": "$HOME ${B} $(rm)", "B": "`ls`", "C": "é"},
	} {
		got, err := parseDotenv([]byte(text))
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"A":             "1: not KEY=VALUE",
		"A=1\n=2":       "2: not KEY=VALUE",
		"A B=1":         "1: not KEY=VALUE",
		"A=1\n\nA=2":    "3: A is there twice",
		"A=\"1":         "1: the value of A has no closing quote",
		"A='1' # more":  "1: the value of A has no closing quote",
		`A="1"2"`:       "1: the value of A has a quote in it",
		`A="\x"`:        "1: the value of A has a \\ before something else",
		`A="\"`:         "1: the value of A has no closing quote",
		"A=\x00":        "it is not text",
		"A=\xff":        "it is not text",
		"é=1":           "1: not KEY=VALUE",
		"A=1\n\"B\"=2":  "2: not KEY=VALUE",
		"A=1\n B\tC=2 ": "2: not KEY=VALUE",
	} {
		if got, err := parseDotenv([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v, want an error with %q", text, got, err, want)
		}
	}
}

// FuzzParseDotenv: whatever is in a file, what is read has keys that a bundle can have, and no error quotes a value.
func FuzzParseDotenv(f *testing.F) {
	f.Add([]byte("A=1\nB=\"x\\n\"\nC='y'\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		values, err := parseDotenv(text)
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("a long error: %v", err)
		}
		for key := range values {
			if !secretKey.MatchString(key) {
				t.Errorf("key %q", key)
			}
		}
	})
}

func TestReadBundle(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("folder/key.pem", "line\n")
	write("folder/..data/key.pem", "of a tool")
	want := map[string]string{
		write("b.env", "A=1\nB='2'"):                  "A=1 B=2",
		write("b.json", " \n{\"A\": \"1\\u00e9\"}\n"): "A=1é",
		write("empty.json", "{}"):                     "",
		filepath.Join(dir, "folder"):                  "key.pem=line\n",
	}
	for path, want := range want {
		values, err := readBundle(path)
		var got []string
		for _, key := range sortedKeys(values) {
			got = append(got, key+"="+string(values[key]))
		}
		if text := strings.Join(got, " "); err != nil || text != want {
			t.Errorf("%s: got %q, %v, want %q", path, text, err, want)
		}
	}
	for _, text := range []string{`{"A": "1"} {}`, `{"A": {"B": "secret"}}`, `{"A": "secret`, `{A: "secret"}`, `{"A": "secret",}`, `{"A": null}`} {
		if got, err := readBundle(write("bad.json", text)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %q, %v", text, got, err)
		}
	}
	if _, err := readBundle(write("big", "A="+strings.Repeat("x", maxInputFile))); err == nil {
		t.Error("a file that is too big was read")
	}
	m := parseManifest(t, "[secrets.one]\npath = \"/run/one\"\n[secrets.two]\npath = \"/run/two\"\n")
	big := write("large.env", "A="+strings.Repeat("x", maxBundle))
	if _, err := readBundles(m, []string{"one=" + big}); err == nil || !strings.Contains(err.Error(), "256.0 KiB with its keys") {
		t.Errorf("a bundle that is one byte too big with its key: %v", err)
	}
}

// parseManifest makes a small manifest with more in it.
func parseManifest(t *testing.T, more string) *manifest.Manifest {
	t.Helper()
	m, problems := manifest.Parse([]byte("schema = \"v1\"\nname = \"app\"\nresources = { memory = \"128MiB\" }\n" + more))
	if m == nil {
		t.Fatal(problems)
	}
	return m
}

func TestChoosePorts(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().(*net.TCPAddr).Port
	free := func() int {
		n, err := anyPort("tcp")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	public, own, chosen := free(), free(), free()
	m := parseManifest(t, fmt.Sprintf(`
[ports.web]
port = 8080
expose = "public"
edge = "raw"
public_port = %d
[ports.clash]
port = %d
expose = "public"
edge = "raw"
public_port = %d
[ports.inside]
port = %d
[ports.hidden]
port = 7
expose = "none"
[ports.told]
port = 8
expose = "none"
[ports.dns]
port = %d
protocol = "udp"
`, public, own, taken, taken, taken))
	ports, err := choosePorts(m, map[string]int{"told": chosen})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range ports {
		address := p.Address
		if p.Name == "inside" {
			if p.public == taken || p.public == 0 {
				t.Errorf("inside: got %+v", p)
			}
			address = "somewhere"
		}
		got = append(got, fmt.Sprintf("%s %s %s", p.Name, address, p.note))
	}
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	note := fmt.Sprintf("port %d is taken on this machine", taken)
	want := []string{
		"clash " + at(own) + " " + note, "dns " + at(taken) + " ", "inside somewhere " + note, "told " + at(chosen) + " ", "web " + at(public) + " ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	_, err = choosePorts(m, map[string]int{"web": taken})
	if status, text, hint := describe(err); status != exitConflict || text != fmt.Sprintf("--publish web=%d: %s", taken, note) || hint == "" {
		t.Errorf("a port that is taken: got %d %q %q", status, text, hint)
	}
	if got := ports[4].URL; got != "http://"+at(public) {
		t.Errorf("URL: got %q", got)
	}
	if got := ports[1].URL; got != "udp://"+at(taken) {
		t.Errorf("URL: got %q", got)
	}
}

// TestLocalPlaces: names have nothing in common, keep what they have, and are taken once.
func TestLocalPlaces(t *testing.T) {
	dir := t.TempDir()
	dirs := directories{data: filepath.Join(dir, "data"), run: filepath.Join(dir, "run")}
	take := func(name string) *localPlace {
		t.Helper()
		p, err := takeLocal(t.Context(), dirs, name, 1000)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, two := take("one"), take("two")
	probe := filepath.Join(one.dirs.data, "agent", "probe", "kvm-probe.json")
	if err := errors.Join(os.MkdirAll(filepath.Dir(probe), 0o700), os.WriteFile(probe, []byte("answer"), 0o600)); err != nil {
		t.Fatal(err)
	}
	two.learn()
	if b, err := os.ReadFile(strings.Replace(probe, "one", "two", 1)); string(b) != "answer" {
		t.Errorf("what one knows of this machine, two has to find out: %v", err)
	}
	if one.uids != 1000 || two.uids != 1000+localUIDs || one.prefix() == two.prefix() {
		t.Errorf("got %d %s and %d %s", one.uids, one.prefix(), two.uids, two.prefix())
	}
	if p := one.prefix(); len(p) != 6 || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		t.Errorf("prefix %q", p)
	}
	_, err := takeLocal(t.Context(), dirs, "one", 1000)
	if status, text, _ := describe(err); status != exitConflict || !strings.Contains(text, "one runs locally already") {
		t.Errorf("taken twice: got %d %q", status, text)
	}
	if err := two.held.Unlock(); err != nil { // as when it is killed
		t.Error(err)
	}
	if again := take("two"); again.uids != two.uids || again.prefix() != two.prefix() {
		t.Errorf("taken again: got %d %s", again.uids, again.prefix())
	}
	if err := errors.Join(one.clear(), one.release()); err != nil {
		t.Error(err)
	}
	if three := take("three"); three.uids != one.uids {
		t.Errorf("what was given back is not used again: %d", three.uids)
	}
	things, err := listLocal(dirs)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, thing := range things {
		got = append(got, thing.Name+" "+thing.State)
	}
	if want := []string{"one stopped", "three running", "two running"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestLocalView shows an instance that is started twice.
func TestLocalView(t *testing.T) {
	var stdout, stderr bytes.Buffer
	v := (&cli{stdout: &stdout, stderr: &stderr, getenv: os.Getenv}).newLocalView(false)
	v.follow("app-1", []localPort{{Name: "web", URL: "http://127.0.0.1:8080", Address: "127.0.0.1:8080", note: "port 80 is taken on this machine"}}, false)
	stage := func(name string) *pinnacev1.Stage {
		return &pinnacev1.Stage{Name: name, DurationMs: 1500, Detail: "a\x1b[2Jb"}
	}
	exited := &pinnacev1.Cause{Kind: "exited", Code: 3, At: timestamppb.Now()}
	for _, r := range []*pinnacev1.InstanceReport{
		{Instance: "other-1", Attempt: 7, State: "ready"},
		{Instance: "app-1", Attempt: 1, State: "starting", Stages: []*pinnacev1.Stage{stage("pull")}},
		{Instance: "app-1", Attempt: 1, State: "started", Message: "not ready yet: refused", Stages: []*pinnacev1.Stage{stage("pull"), stage("init")}},
		{Instance: "app-1", Attempt: 1, State: "ready", Stages: []*pinnacev1.Stage{stage("pull"), stage("init"), stage("ready")}},
		{Instance: "app-1", Attempt: 1, State: "backoff", Message: "starting again in 1s", End: exited},
		{Instance: "app-1", Attempt: 2, State: "starting", Stages: []*pinnacev1.Stage{stage("pull")}},
	} {
		v.report(r)
	}
	if err := v.lines([]*pinnacev1.StreamLogsResponse{
		{Stream: "stdout", Line: []byte("out\x1b[1m\xff")}, {Stream: "stderr", Line: []byte("err")}, {Stream: "platform", Line: []byte("3 lines\x1b were lost")},
	}); err != nil {
		t.Error(err)
	}
	if got := stdout.String(); got != "out\x1b[1m\xff\n" {
		t.Errorf("stdout: got %q", got)
	}
	var got []string
	for line := range strings.Lines(stderr.String()) {
		if _, after, timed := strings.Cut(strings.TrimRight(line, "\n"), "s  "); timed && line[0] == ' ' {
			line = after
		}
		got = append(got, strings.TrimRight(line, "\n"))
	}
	want := []string{
		"note: port 80 is taken on this machine, so web is at 127.0.0.1:8080",
		"pull       1.50s  a\uFFFD[2Jb", "init       1.50s  a\uFFFD[2Jb", "ready      1.50s  a\uFFFD[2Jb",
		"web answers at http://127.0.0.1:8080", "ended: the process exited with status 3", "starting again in 1s", "attempt 2",
		"pull       1.50s  a\uFFFD[2Jb", "err", "-- 3 lines\uFFFD were lost",
	}
	if !slices.Equal(got, want) {
		t.Errorf("stderr: got %q\nwant %q", got, want)
	}
	if isClosed(v.over) || isClosed(v.hopeless) {
		t.Error("it is taken for ended")
	}
}

// TestLocalOutcome: how it ended is what the command ends with.
func TestLocalOutcome(t *testing.T) {
	failed := &pinnacev1.Cause{Kind: "start_failed", Stage: "init", Detail: "no such file"}
	for name, c := range map[string]struct {
		reports  []*pinnacev1.InstanceReport
		once     bool
		status   int
		hopeless bool
	}{
		"done":          {reports: []*pinnacev1.InstanceReport{{Final: true, End: &pinnacev1.Cause{Kind: "exited"}}}, status: exitOK},
		"failed":        {reports: []*pinnacev1.InstanceReport{{Final: true, End: &pinnacev1.Cause{Kind: "exited", Code: 1}}}, status: exitNotRestored},
		"out of memory": {reports: []*pinnacev1.InstanceReport{{Final: true, End: &pinnacev1.Cause{Kind: "guest_oom"}}}, status: exitNotRestored},
		"lost":          {reports: []*pinnacev1.InstanceReport{{Final: true, End: &pinnacev1.Cause{Kind: "lost"}}}, status: exitNotRestored},
		"stopped":       {reports: []*pinnacev1.InstanceReport{{Final: true, End: &pinnacev1.Cause{Kind: "signalled", Signal: "SIGKILL", Planned: true}}}, status: exitOK},
		"stopped early": {reports: []*pinnacev1.InstanceReport{{Final: true, State: "ended"}}, status: exitOK},
		"never started": {
			reports: []*pinnacev1.InstanceReport{
				{Attempt: 1, State: "backoff", End: failed}, {Attempt: 2, State: "pulling"}, {Attempt: 2, Final: true, End: &pinnacev1.Cause{Kind: "start_failed", Planned: true}},
			},
			status: exitNotRestored, hopeless: true,
		},
		"crashed later": {
			reports: []*pinnacev1.InstanceReport{
				{Attempt: 1, State: "ready"}, {Attempt: 1, State: "backoff", End: failed}, {Attempt: 2, Final: true, End: &pinnacev1.Cause{Kind: "exited", Planned: true}},
			},
			status: exitOK,
		},
		"once": {
			reports: []*pinnacev1.InstanceReport{{Attempt: 1, State: "backoff", End: &pinnacev1.Cause{Kind: "exited"}}, {Attempt: 1, Final: true, End: &pinnacev1.Cause{Kind: "exited"}}},
			once:    true, status: exitOK, hopeless: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := (&cli{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, getenv: os.Getenv, json: true}).newLocalView(false)
			v.follow("app-1", nil, c.once)
			for _, r := range c.reports {
				r.Instance, r.Attempt = "app-1", max(r.Attempt, 1)
				v.report(r)
			}
			err := v.outcome("app")
			status := exitOK
			if err != nil {
				status, _, _ = describe(err)
			}
			if status != c.status || !isClosed(v.over) || isClosed(v.hopeless) != c.hopeless {
				t.Errorf("status %d, want %d (%v); hopeless: %v", status, c.status, err, isClosed(v.hopeless))
			}
		})
	}
}

// TestLateLines: a view waits for lines without holding up the reports.
func TestLateLines(t *testing.T) {
	v := (&cli{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, getenv: os.Getenv, json: true}).newLocalView(false)
	v.follow("app-1", nil, false)
	v.answered("other-1")
	if isClosed(v.written) {
		t.Error("the answer was another's")
	}
	v.answered("app-1")
	v.answered("app-1")
	select {
	case <-v.written:
	case <-time.After(time.Minute):
		t.Error("nothing is known of the end of the output")
	}
}
