package release_test

import (
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

func TestCheckEnvironment(t *testing.T) {
	m, problems := manifest.Parse([]byte(`schema = "v1"
name = "api"
vars = ["PUBLIC_URL", "REGION"]
resources = { memory = "256MiB" }
secrets.api = { env = ["DATABASE_URL"], require = ["TOKEN"] }
[secrets.tls]
path = "/run/secrets/tls"
[volumes.data]
path = "/data"
size = "1GiB"
per = "workload"
`))
	if m == nil {
		t.Fatal(problems.Err())
	}
	if got := release.CheckEnvironment(m, release.Environment{Name: "prod", Count: 1}); len(got) != 0 {
		t.Errorf("an environment that has everything: %v", got)
	}
	got := release.CheckEnvironment(m, release.Environment{
		Name: "prod", Vars: []string{"PUBLIC_URL", "REGION"}, Count: 2, NoRoom: "no host has joined",
		Secrets: []release.MissingSecret{{Bundle: "api", Keys: []string{"TOKEN"}}, {Bundle: "tls", Absent: true}},
	})
	want := []string{
		`3:8: E400 vars: the environment "prod" does not supply PUBLIC_URL`,
		`3:8: E400 vars: the environment "prod" does not supply REGION`,
		`4:13: E403 resources: the environment "prod" has no room for an instance now: no host has joined`,
		`5:9: E402 secrets.api: the secret bundle "api" of the environment "prod" lacks TOKEN`,
		`6:10: E401 secrets.tls: the environment "prod" has no secret bundle "tls"`,
		`11:7: E122 volumes.data.per: "workload" with 2 instances`,
	}
	for i, p := range got {
		if i >= len(want) || p.String() != want[i] {
			t.Errorf("problem %d is %s", i, p)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d", len(got), len(want))
	}
	var b strings.Builder
	got.Render(&b, "pinnace.toml", []byte("schema = \"v1\"\nname = \"api\"\nvars = [\"PUBLIC_URL\", \"REGION\"]\n"), manifest.RenderOptions{Caret: true})
	if !strings.Contains(b.String(), "    3 | vars = [\"PUBLIC_URL\", \"REGION\"]\n      |        ^") {
		t.Errorf("there is no mark under the place:\n%s", b.String())
	}
}
