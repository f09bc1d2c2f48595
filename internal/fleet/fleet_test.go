package fleet

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

var update = flag.Bool("update", false, "write the golden files; the stored form of an event must never change, so only new ones may show up in the diff")

// teller appends events to a state as a log would.
type teller struct {
	t     *testing.T
	state *State
	now   time.Time
	told  []Event
}

func newTeller(t *testing.T) *teller {
	s := New()
	s.Track()
	return &teller{t: t, state: s, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func (l *teller) event(p Payload) Event {
	l.t.Helper()
	b, err := Encode(p)
	if err != nil {
		l.t.Fatal(err)
	}
	return Event{Seq: l.state.Seq() + 1, At: l.now, Actor: "admin", Type: p.EventType(), TypeVersion: p.EventVersion(), Payload: b}
}

func (l *teller) tell(payloads ...Payload) {
	l.t.Helper()
	for _, p := range payloads {
		l.now = l.now.Add(time.Second)
		e := l.event(p)
		if err := l.state.Apply(e); err != nil {
			l.t.Fatal(err)
		}
		l.told = append(l.told, e)
	}
}

// refused checks that an event is refused and leaves no trace.
func (l *teller) refused(p Payload, want string) error {
	l.t.Helper()
	before := l.state.Hash()
	err := l.state.Apply(l.event(p))
	if err == nil || !strings.Contains(err.Error(), want) {
		l.t.Errorf("%s: got %v, want an error with %q", p.EventType(), err, want)
	}
	if l.state.Hash() != before {
		l.t.Errorf("%s: refused, and yet the state has changed", p.EventType())
	}
	return err
}

const manifestText = `schema = "v1"
name = "NAME"
resources = { memory = "128MiB", disk = "64MiB" }
ports.web = { port = 8080, expose = "public", edge = "raw", public_port = PORT }
`

// testRelease makes the event of a release; version makes its image another one.
func testRelease(t *testing.T, app, port string, version byte, more ...string) *ReleaseCreated {
	t.Helper()
	source := strings.NewReplacer("NAME", app, "PORT", port).Replace(manifestText) + strings.Join(more, "\n")
	m, problems := manifest.Parse([]byte(source))
	if m == nil {
		t.Fatal(problems.Err())
	}
	image := release.ImageDigest("sha256:" + strings.Repeat(string([]byte{'0' + version}), 64))
	return &ReleaseCreated{
		Release: string(release.New(image, m).ID()), App: app, Image: string(image), ManifestHash: string(m.Hash()), ManifestSource: source,
		ManifestCanonical: string(m.Canonical()), Sources: []string{"registry.example/" + app},
		Platforms: []Platform{{Architecture: "amd64", ManifestDigest: string(image), ImageManifest: []byte(`{"a":1}`), ImageConfig: []byte(`{}`)}},
	}
}

var testHost = &HostJoined{
	Host: "h1", Name: "host one", Architecture: "amd64", MemoryBytes: 1 << 32, CPUMilli: 2000, DiskBytes: 1 << 34,
	Labels: map[string]string{"zone": "a", "ingress": "yes"}, Version: "0.1", Driver: "qemu", Accelerator: "tcg",
}

func deploy(id string, r *ReleaseCreated, previous string) *DeploymentStarted {
	return &DeploymentStarted{Deployment: id, Environment: "dev", App: r.App, Kind: KindDeploy, Release: r.Release, Count: 1, Previous: previous}
}

func start(deployment, instance string, r *ReleaseCreated) *InstancesPlanned {
	return &InstancesPlanned{Deployment: deployment, Start: []PlannedStart{{
		Instance: instance, Host: "h1", Deployment: deployment, Release: r.Release,
	}}}
}

func succeeded(id string) *DeploymentFinished {
	return &DeploymentFinished{Deployment: id, Outcome: Succeeded}
}

// story is one of each event, in an order that makes sense.
func story(t *testing.T) []Payload {
	return append(deployments(t), identityStory()...)
}

func deployments(t *testing.T) []Payload {
	one, two := testRelease(t, "api", "80", 1), testRelease(t, "api", "80", 2)
	blue := testRelease(t, "api", "80", 3, `rollout = { strategy = "blue-green", before = { command = ["/migrate"] } }`, "")
	second, third := deploy("dep-2", two, "dep-1"), deploy("dep-3", blue, "dep-1")
	second.Vars = map[string]string{"B": "2", "A": "1"}
	return append([]Payload{
		&EnvironmentCreated{Name: "dev"}, &VarsChanged{Environment: "dev", Set: map[string]string{"A": "1", "B": "2"}},
		&AppPlaced{Environment: "dev", App: "api", Labels: map[string]string{"zone": "a"}}, testHost, one, two,
		&ReleaseSourced{Release: two.Release, Sources: []string{"mirror.example/api", "registry.example/api"}},
		deploy("dep-1", one, ""), start("dep-1", "api-1", one),
		&InstanceStarted{Instance: "api-1", Attempt: 1, Booted: Booted{
			ManifestHash: one.ManifestHash, ImageManifestDigest: one.Image, DiffIDs: []string{"sha256:aa"}, RootfsSHA256: "bb", Converter: "1",
			KernelSHA256: "cc", KernelVersion: "6.12.0", InitramfsSHA256: "dd", Driver: "qemu", DriverVersion: "7.2", Accelerator: "tcg",
		}},
		&InstanceReady{Instance: "api-1", Attempt: 1}, succeeded("dep-1"),
		&ExecRequested{Instance: "api-1", Program: "/bin/sh", Arguments: 2, User: "root", Terminal: true},
		run("api-run", one), &RunStopped{Instance: "api-run", Reason: "asked to by admin"},
		second, start("dep-2", "api-2", two),
		&InstanceEnded{Instance: "api-2", Attempt: 3, Count: 3, Cause: Cause{Kind: "exited", Code: 7, Detail: "no", UnixMilli: 1893456000000}},
		&DeploymentPaused{Deployment: "dep-2"}, &DeploymentResumed{Deployment: "dep-2"},
		&DeploymentTurnedBack{Deployment: "dep-2", Reason: "instance api-2 ended 3 times"},
		&InstancesPlanned{Deployment: "dep-2", Stop: []string{"api-2"}},
		&InstanceEnded{Instance: "api-2", Attempt: 3, Cause: Cause{Kind: "exited"}, Planned: true, Final: true},
		&DeploymentFinished{Deployment: "dep-2", Outcome: RolledBack, Reason: "instance api-2 ended 3 times"},
		blue, third, &InstancesPlanned{Deployment: "dep-3", Start: []PlannedStart{{
			Instance: "api-task", Host: testHost.Host, Deployment: "dep-3", Release: blue.Release, Task: true,
		}}},
		&InstanceEnded{Instance: "api-task", Attempt: 1, Count: 1, Cause: Cause{Kind: "exited"}, Final: true},
		&DeploymentSwitched{Deployment: "dep-3"}, succeeded("dep-3"),
		&SecretPut{Environment: "dev", Bundle: "api", Version: 1, Keys: []string{"A", "B"}, Sealed: sealedAs('a'), Recipient: "age1x"},
		&SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{1}},
		&RegistryLoggedIn{Environment: "dev", Registry: "registry.example:5000", Username: "robot", Sealed: sealedAs('b'), Recipient: "age1x"},
		&RegistryLoggedOut{Environment: "dev", Registry: "registry.example:5000"},
		&RouteSet{Environment: "dev", App: "web", Port: "tls", Address: "192.0.2.1", PublicPort: 443, Names: []string{"*.shop.example", "shop.example"}},
		&RouteUnset{Environment: "dev", App: "web", Port: "tls"},
		&HostDrainStarted{Host: "h1"}, &HostDrainEnded{Host: "h1"}, &HostRemoved{Host: "h1", Lost: []string{"api-1"}},
	}, volumeStory(t)...)
}

// TestGoldenEvents guards the stored form of every version of every event.
func TestGoldenEvents(t *testing.T) {
	seen := map[string]Payload{}
	for _, p := range story(t) {
		_, ok := seen[p.EventType()]
		if d, is := p.(*DeploymentStarted); !ok || is && d.Vars != nil {
			seen[p.EventType()] = p
		}
	}
	for typ, p := range seen {
		path := filepath.Join("testdata", "events", typ+".v1.json")
		got, err := Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s\ngot  %s\nwant %s", path, got, want)
		}
		decoded, err := Decode(typ, 1, want)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(decoded, p) {
			t.Errorf("%s reads as %+v, want %+v", path, decoded, p)
		}
	}
	files, err := filepath.Glob("testdata/events/*.json")
	if err != nil || len(files) != len(seen) {
		t.Errorf("%d golden files for %d event types: %v", len(files), len(seen), err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct {
		typ     string
		version uint16
		payload string
		want    string
	}{
		{"environment.renamed", 1, `{}`, `unknown event type "environment.renamed"`},
		{"environment.created", 2, `{"name":"dev"}`, `version 2 of event type "environment.created" is unknown`},
		{"environment.created", 1, `{"name":"dev","colour":"red"}`, `unknown field "colour"`},
		{"environment.created", 1, `{"name":"dev"}{}`, `bytes after the document`},
		{"environment.created", 1, `{"name":1}`, `decode environment.created`},
		{"environment.created", 1, ``, `EOF`},
	}
	for _, tt := range tests {
		if _, err := Decode(tt.typ, tt.version, []byte(tt.payload)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: got %v, want %q", tt.typ, tt.payload, err, tt.want)
		}
	}
}

// TestFoldIsDeterministic folds the story twice, once in another time zone, and undoes and redoes it.
func TestFoldIsDeterministic(t *testing.T) {
	l := newTeller(t)
	var hashes [][32]byte
	hashes = append(hashes, l.state.Hash())
	for _, p := range story(t) {
		l.tell(p)
		hashes = append(hashes, l.state.Hash())
	}
	other := New()
	zone := time.FixedZone("elsewhere", 3600)
	for n, e := range l.told {
		e.At = e.At.In(zone)
		if err := other.Apply(e); err != nil {
			t.Fatal(err)
		}
		if other.Hash() != hashes[n+1] {
			t.Fatalf("after event %d the states differ", e.Seq)
		}
	}
	copied := l.state.Clone()
	for n := len(l.told); n >= 0; n-- {
		if err := l.state.Revert(uint64(n)); err != nil {
			t.Fatal(err)
		}
		if l.state.Hash() != hashes[n] {
			t.Fatalf("going back to event %d gives another state", n)
		}
	}
	if copied.Hash() != hashes[len(l.told)] {
		t.Error("a clone changed with its original")
	}
	for n, e := range l.told {
		if err := l.state.Apply(e); err != nil || l.state.Hash() != hashes[n+1] {
			t.Fatalf("doing event %d again: %v", n, err)
		}
	}
	l.state.Settle(5)
	if err := l.state.Revert(5); err != nil {
		t.Error(err)
	}
	if err := l.state.Revert(4); err == nil {
		t.Error("a settled event was undone")
	}
}

func TestApplyNeedsTheNextEvent(t *testing.T) {
	l := newTeller(t)
	l.tell(&EnvironmentCreated{Name: "dev"})
	for _, seq := range []uint64{0, 1, 3} {
		e := l.event(&EnvironmentCreated{Name: "prod"})
		e.Seq = seq
		if err := l.state.Apply(e); err == nil {
			t.Errorf("event %d was applied after event 1", seq)
		}
	}
}

func TestRefusals(t *testing.T) {
	l := newTeller(t)
	one, two := testRelease(t, "api", "80", 1), testRelease(t, "api", "80", 2)
	web := testRelease(t, "web", "80", 3)
	l.tell(&EnvironmentCreated{Name: "dev"}, &EnvironmentCreated{Name: "prod"}, testHost, one, two, web)

	if err := l.refused(&EnvironmentCreated{Name: "dev"}, "exists already"); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	l.refused(&EnvironmentCreated{Name: "Dev/x"}, "environment name")
	l.refused(&HostJoined{Host: "h2"}, "are needed")
	l.refused(one, "exists already")
	forged := *testRelease(t, "api", "80", 4)
	forged.Image = one.Image
	l.refused(&forged, "its image and manifest make")
	forged = *testRelease(t, "api", "80", 4)
	forged.ManifestHash = "sha256:" + strings.Repeat("0", 64)
	l.refused(&forged, "its manifest has the hash")
	forged = *testRelease(t, "api", "80", 4)
	forged.ManifestCanonical += " "
	l.refused(&forged, "manifest of release")
	l.refused(deploy("dep-1", &ReleaseCreated{App: "api", Release: "sha256:00"}, ""), "not found")
	l.refused(deploy("dep-1", one, "dep-0"), `now "" is`)
	l.refused(&DeploymentStarted{Deployment: "d", Environment: "dev", App: "api", Kind: "fly", Release: one.Release, Count: 1}, "unknown kind")
	l.refused(&DeploymentStarted{Deployment: "d", Environment: "dev", App: "api", Kind: KindStop, Release: one.Release}, "a stop is of an app")
	l.refused(&DeploymentStarted{Deployment: "d", Environment: "dev", App: "api", Kind: KindDeploy, Release: one.Release, Count: 1001}, "count 1001")

	l.tell(deploy("dep-1", one, ""))
	var busy *BusyError
	if err := l.refused(deploy("dep-2", two, ""), "one at a time"); !errors.As(err, &busy) || busy.Active.ID != "dep-1" {
		t.Error(err)
	}
	conflict := deploy("dep-3", web, "")
	conflict.Environment = "prod"
	var port *PortConflictError
	if err := l.refused(conflict, "public port 80 (tcp) is held by app api in environment dev"); !errors.As(err, &port) {
		t.Error(err)
	}
	l.refused(&InstancesPlanned{Deployment: "dep-1"}, "it is empty")
	l.refused(&InstancesPlanned{Deployment: "dep-1", Stop: []string{"api-9"}}, "not an instance of api in dev that runs")
	wrong := start("dep-1", "api-1", two)
	l.refused(wrong, "is not that of deployment dep-1")
	lost := start("dep-1", "api-1", one)
	lost.Start[0].Host = "h9"
	l.refused(lost, `host "h9"`)

	l.tell(start("dep-1", "api-1", one))
	l.refused(start("dep-1", "api-1", one), "exists already")
	l.refused(&InstanceEnded{Instance: "api-1", Attempt: 1, Count: 2}, "2 ends up to attempt 1")
	l.refused(&InstanceEnded{Instance: "api-1", Attempt: 0, Count: 0}, "0 ends up to attempt 0")
	l.tell(&InstanceStarted{Instance: "api-1", Attempt: 1}, &InstanceReady{Instance: "api-1", Attempt: 1})
	l.refused(&InstanceStarted{Instance: "api-1", Attempt: 1}, "start of attempt 1 after attempt 1")
	l.refused(&InstanceReady{Instance: "api-1", Attempt: 1}, "attempt 1 ready after attempt 1")
	l.refused(&ExecRequested{Instance: "api-9", Program: "sh"}, "not found")
	l.refused(&ExecRequested{Instance: "api-1"}, "there is none")
	l.refused(&DeploymentFinished{Deployment: "dep-1", Outcome: Running}, "is not an outcome")
	l.refused(&DeploymentFinished{Deployment: "dep-9", Outcome: Succeeded}, "is not active")
	l.tell(succeeded("dep-1"))
	l.refused(succeeded("dep-1"), "is not active")
	l.refused(&DeploymentTurnedBack{Deployment: "dep-1"}, "not one that can be turned back")
	l.refused(deploy("dep-2", two, ""), `decided when deployment "" was live, but now "dep-1" is`)
	l.tell(&InstanceEnded{Instance: "api-1", Attempt: 1, Count: 1, Final: true})
	l.refused(&InstanceReady{Instance: "api-1", Attempt: 2}, "has ended for good")
}

func TestBookings(t *testing.T) {
	l := newTeller(t)
	one := testRelease(t, "api", "80", 1)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, one, deploy("dep-1", one, ""), start("dep-1", "api-1", one), start("dep-1", "api-2", one))
	b := l.state.Booking("h1")
	if b.MemoryBytes != 256<<20 || b.DiskBytes != 128<<20 || !slices.Equal(b.Instances, []string{"api-1", "api-2"}) {
		t.Errorf("got %+v", b)
	}
	// An instance holds its place until it has ended, not until it was asked to.
	l.tell(&InstancesPlanned{Deployment: "dep-1", Stop: []string{"api-1"}})
	if n := len(l.state.InstancesOn("h1")); n != 2 {
		t.Errorf("%d instances on the host, want 2", n)
	}
	l.tell(&InstanceEnded{Instance: "api-1", Final: true, Planned: true})
	b = l.state.Booking("h1")
	if b.MemoryBytes != 128<<20 || !slices.Equal(b.Instances, []string{"api-2"}) {
		t.Errorf("got %+v", b)
	}
	// What a host says anew does not touch what is placed there.
	l.tell(testHost)
	if got := l.state.Booking("h1"); got != b {
		t.Errorf("joining again changed the booking to %+v", got)
	}
}

func TestEndedInstancesAreForgotten(t *testing.T) {
	l := newTeller(t)
	one, two := testRelease(t, "api", "80", 1), testRelease(t, "api", "80", 2)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, one, two, deploy("dep-1", one, ""))
	id := func(n int) string { return "api-" + string([]byte{byte('a' + n/26), byte('a' + n%26)}) }
	for n := range 100 {
		l.tell(start("dep-1", id(n), one))
		if n%2 == 0 {
			l.tell(&InstancesPlanned{Deployment: "dep-1", Stop: []string{id(n)}})
		}
		l.tell(&InstanceEnded{Instance: id(n), Attempt: 1, Count: 1, Final: true, Planned: n%2 == 0})
	}
	// Those that nobody stopped may be what the deployment came for, so they stay.
	if n := len(l.state.EndedInstances("dev", "api")); n != 50 {
		t.Errorf("%d ended instances are kept, want the 50 that nobody stopped", n)
	}
	if l.state.Instance(id(0)) != nil || l.state.Instance(id(99)) == nil {
		t.Error("the wrong instances were forgotten")
	}
}

func TestBursts(t *testing.T) {
	l := newTeller(t)
	one := testRelease(t, "api", "80", 1)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, one, deploy("dep-1", one, ""), start("dep-1", "api-1", one))
	end := func(attempt, count uint32) { l.tell(&InstanceEnded{Instance: "api-1", Attempt: attempt, Count: count}) }
	end(1, 1)
	end(2, 1)
	end(3, 1)
	if i := l.state.Instance("api-1"); i.Burst != 3 || i.Crashes != 3 {
		t.Errorf("burst %d, crashes %d", i.Burst, i.Crashes)
	}
	l.now = l.now.Add(BurstWindow)
	end(40, 37)
	if i := l.state.Instance("api-1"); i.Burst != 1 || i.Crashes != 40 {
		t.Errorf("burst %d, crashes %d", i.Burst, i.Crashes)
	}
}
