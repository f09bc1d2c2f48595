package release_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

const smallest = `schema = "v1"
name = "api"
resources = { memory = "256MiB" }
ports.web = { port = 8080, expose = "public", edge = "raw", public_port = 80 }
`

func canonical(t *testing.T, src string) []byte {
	t.Helper()
	m, problems := manifest.Parse([]byte(src))
	if m == nil {
		t.Fatalf("%v\n%s", problems.Err(), src)
	}
	return m.Canonical()
}

func TestDiff(t *testing.T) {
	for _, tt := range []struct {
		name, a, b string
		want       []string
	}{
		{"same", "", "", nil},
		{"a default written out", "", "[rollout]\nhold = \"10s\"\n[stop]\ndrain = \"5000ms\"", nil},
		{"value", "", "[stop]\ntimeout = \"2m\"", []string{`changed stop.timeout "10s" -> "2m" in place`}},
		{"zero", "", "[stop]\ndrain = \"0s\"", []string{`changed stop.drain "5s" -> "0s" in place`}},
		{"list", "", "[network]\negress = \"none\"\n[ports.x]\nport = 9", []string{
			`added ports.x  -> { port = 9, protocol = "tcp", expose = "internal" } routing`, `changed network.egress "all" -> "none" routing`,
		}},
		{"number and order of the reference", "[env]\nB = \"1\"\nA = \"1\"", "[env]\nA = \"2\"", []string{`changed env.A "1" -> "2" replace`, `removed env.B "1" ->  replace`}},
		{"within a port", "[ports.x]\nport = 9", "[ports.x]\nport = 10\nexpose = \"none\"", []string{
			`changed ports.x.port 9 -> 10 replace`, `changed ports.x.expose "internal" -> "none" routing`,
		}},
		{"probe", "", "[health.live]\ntype = \"exec\"\ncommand = [\"a\", \"b\"]", []string{
			`added health.live  -> { type = "exec", command = ["a", "b"], interval = "5s", timeout = "2s", pass = 1, fail = 3 } in place`,
		}},
		{"key within a probe", "[health.ready]\ntype = \"tcp\"\nport = \"web\"", "[health.ready]\ntype = \"tcp\"\nport = \"web\"\nfail = 9", []string{`changed health.ready.fail 3 -> 9 in place`}},
		{"one-off", "[rollout.before]\ncommand = [\"m\"]", "", []string{`removed rollout.before { command = ["m"], timeout = "5m" } ->  none`}},
		{"volume", "", "[volumes.data]\npath = \"/data\"\nsize = \"1536MiB\"", []string{
			`added volumes.data  -> { path = "/data", size = "1536MiB", per = "instance", read_only = false, on_missing = "create" } data`,
		}},
		{"secret", "", "[secrets.api]\npath = \"/s\"", []string{
			`added secrets.api  -> { path = "/s", env = [], format = "dir", mode = "0400", require = [], on_change = "rollout" } replace`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			changes, err := release.Diff(canonical(t, smallest+tt.a), canonical(t, smallest+tt.b))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range changes {
				got = append(got, fmt.Sprintf("%s %s %s -> %s %s", c.Kind, c.Key, c.OldText, c.NewText, c.Effect))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
	if _, err := release.Diff([]byte(`{}`), canonical(t, smallest)); err == nil {
		t.Error("something that is no manifest was compared")
	}
}

// Whatever differs in the canonical bytes is told, and what is told is what they say: applying the changes
// to one side gives the other.
func TestDiffIsComplete(t *testing.T) {
	full := smallest + `entrypoint = ["a"]
command = []
workdir = "/w"
user = "1:1"
arch = ["arm64", "amd64"]
restart = "never"
vars = ["V"]
[env]
"E" = "<&>\u2028"
[resources]
`
	full = strings.Replace(full, "resources = { memory = \"256MiB\" }\n", "", 1) + `memory = "1GiB"
cpu = 1.5
disk = "2GiB"
[stop]
signal = "SIGINT"
[ports.dns]
port = 53
protocol = "udp"
expose = "public"
public_port = 53
[health.ready]
type = "http"
port = "web"
status = [204, 200]
[health.live]
type = "tcp"
port = "web"
[rollout]
strategy = "canary"
canary = 2
[rollout.before]
command = ["m"]
[secrets.x]
env = ["K"]
[network]
egress = "internal"
`
	a, b := canonical(t, smallest), canonical(t, full)
	for _, pair := range [][2][]byte{{a, b}, {b, a}} {
		changes, err := release.Diff(pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(pair[0], &doc); err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			apply(t, doc, c)
		}
		got, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		var want any
		if err := json.Unmarshal(pair[1], &want); err != nil {
			t.Fatal(err)
		}
		wanted, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(wanted) {
			t.Errorf("changes applied:\n got %s\nwant %s", got, wanted)
		}
	}
}

// apply changes doc as c says; tables that become empty go.
func apply(t *testing.T, doc map[string]any, c release.Change) {
	t.Helper()
	path := strings.Split(c.Key, ".")
	var steps []map[string]any
	for _, p := range path[:len(path)-1] {
		steps = append(steps, doc)
		next, ok := doc[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			doc[p] = next
		}
		doc = next
	}
	last := path[len(path)-1]
	if c.Kind != release.Removed {
		var v any
		if err := json.Unmarshal(c.New, &v); err != nil {
			t.Fatal(err)
		}
		doc[last] = v
		return
	}
	delete(doc, last)
	for i := len(steps) - 1; i >= 0 && len(doc) == 0; i-- {
		delete(steps[i], path[i])
		doc = steps[i]
	}
}

func TestStrongest(t *testing.T) {
	if got := release.Strongest(); got != manifest.EffectNone {
		t.Errorf("nothing: got %s", got)
	}
	if got := release.Strongest(manifest.EffectRouting, manifest.EffectReplace, manifest.EffectInPlace); got != manifest.EffectReplace {
		t.Errorf("got %s", got)
	}
}

func TestDiffConfigs(t *testing.T) {
	config := func(process, more string) []byte {
		return []byte(`{"os":"linux","architecture":"amd64","config":{` + process + `},"rootfs":{"type":"layers","diff_ids":["sha256:base"` + more + `]},"history":[{}]}`)
	}
	for _, tt := range []struct {
		name, manifest, a, b string
		want                 []string
	}{
		{"same", "", `"User":"1"`, `"User":"1"`, nil},
		{"empty is absent", "", `"Entrypoint":null,"Volumes":{},"User":""`, ``, nil},
		{"used", "", `"Cmd":["a"]`, `"Cmd":["a","<b>"],"User":"5"`, []string{`changed Cmd ["a"] -> ["a","<b>"] replace`, `added User  -> "5" replace`}},
		{"other spelling", "", `"user":"1"`, `"USER":"5"`, []string{`changed User "1" -> "5" replace`}},
		{"variables one by one", "", `"Env":["A=1","B=2"]`, `"Env":["B=3","C"]`, []string{`removed Env.A "1" ->  replace`, `changed Env.B "2" -> "3" replace`, `added Env.C  -> "" replace`}},
		{"ignored", "", `"Labels":{"v":"1"}`, `"Labels":{"v":"2"},"ExposedPorts":{"80/tcp":{}},"Healthcheck":{"Test":["NONE"]}`, []string{
			`added ExposedPorts.80/tcp  -> {} none ignored`, `added Healthcheck  -> {"Test":["NONE"]} none ignored`, `changed Labels.v "1" -> "2" none ignored`,
		}},
		{"overridden", "entrypoint = [\"x\"]\nuser = \"7\"\nenv.A = \"9\"", `"Env":["A=1"]`, `"Env":["A=2"],"Cmd":["c"],"Entrypoint":["e"],"User":"1"`, []string{
			`added Entrypoint  -> ["e"] none overridden`, `added Cmd  -> ["c"] none overridden`, `changed Env.A "1" -> "2" none overridden`, `added User  -> "1" none overridden`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, problems := manifest.Parse([]byte(smallest + tt.manifest))
			if m == nil {
				t.Fatal(problems.Err())
			}
			d, err := release.DiffConfigs(config(tt.a, `,"sha256:old"`), config(tt.b, `,"sha256:new","sha256:new2"`), m)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range d.Changes {
				line := fmt.Sprintf("%s %s %s -> %s %s", c.Kind, c.Field, c.Old, c.New, c.Effect)
				if c.Ignored {
					line += " ignored"
				}
				if c.Overridden {
					line += " overridden"
				}
				got = append(got, line)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
			if got := fmt.Sprint(d.Layers); got != "{1 [sha256:new sha256:new2] [sha256:old]}" {
				t.Errorf("layers: got %s", got)
			}
		})
	}
	m, _ := manifest.Parse([]byte(smallest))
	for _, bad := range []string{"", "[]", `{"config":{"Env":"x"}}`} {
		if _, err := release.DiffConfigs([]byte(bad), config("", ""), m); err == nil {
			t.Errorf("%q was compared", bad)
		}
	}
}
