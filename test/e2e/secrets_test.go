package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest/secrettest"
)

// TestSecrets: a workload reads its secrets from a file and a variable, gets new ones by a rollout and the old ones by a
// rollback, and they are nowhere but in its memory.
func TestSecrets(t *testing.T) {
	const first, second = "canary-First/7+x", "canary-Second %9\"y\""
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port)+"secrets.api = { path = \"/run/secrets/api\", env = [\"TOKEN\"], require = [\"KEY\"] }\n")
	image := l.push("app", "v1", workloadImage(t, "1", nil))
	write := func(key, value string) string {
		path := filepath.Join(l.dir, "given", key)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(path)
	}
	l.refuse(5, []string{"E401", "secrets.api", "KEY", "TOKEN"}, "deploy", "-f", m, "--image", image)
	write("KEY", first)
	l.must("secrets", "put", "api", "--from", write("TOKEN", first))
	l.must("deploy", "-f", m, "--image", image)
	has := func(value string) {
		t.Helper()
		l.eventually(30*time.Second, "the workload has its secret", func() error {
			for _, ask := range []string{"/file?path=/run/secrets/api/KEY", "/env?name=TOKEN"} {
				got, err := fetch(port, ask)
				if err == nil && got != value {
					err = fmt.Errorf("%s: it has other %d bytes", ask, len(got))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	has(first)
	before, deployment := l.instances()[0].ID, l.live("app")
	write("KEY", second)
	l.must("secrets", "put", "api", "--from", write("TOKEN", second))
	has(second)
	if after := l.instances()[0].ID; after == before {
		t.Error("the instance was not replaced")
	}
	l.refuse(5, []string{"is what app has"}, "secrets", "revoke", "api", "2")
	l.must("rollback", "app", "--to", deployment)
	has(first)
	said := l.must("secrets", "versions", "api") + l.must("secrets", "show", "api", "--json") + l.must("audit", "export") + l.must("events", "--json") +
		l.must("logs", "app") + l.must("why", l.instances()[0].ID) + l.out.String()
	if !strings.Contains(said, "secret.put") || !strings.Contains(said, "TOKEN") {
		t.Errorf("nothing tells of the bundle:\n%s", said)
	}
	for _, canary := range []string{first, second} {
		finder := secrettest.For(canary)
		for _, dir := range []string{"data/server", "data/agent", "run", "config"} {
			found, err := finder.Below(filepath.Join(l.dir, dir))
			if err != nil || len(found) > 0 {
				t.Errorf("the secret is in %v, %v", found, err)
			}
		}
		if found, err := finder.InProcesses(); err != nil || len(found) > 0 {
			t.Errorf("the secret is in %v, %v", found, err)
		}
		if found, err := finder.In(strings.NewReader(said)); err != nil || len(found) > 0 {
			t.Errorf("the secret was said: %v, %v", found, err)
		}
	}
	l.must("deploy", "-f", m, "--image", image) // which has the newest again
	has(second)
	l.must("stop", "app")
}

// live is the id of the deployment of an app that is live.
func (l *lab) live(app string) string {
	l.t.Helper()
	var status struct {
		Apps []struct {
			Live struct {
				ID string `json:"id"`
			} `json:"live"`
		} `json:"apps"`
	}
	l.parse(l.must("status", app, "--json"), &status)
	if len(status.Apps) != 1 || status.Apps[0].Live.ID == "" {
		l.t.Fatalf("%s is not live: %+v", app, status)
	}
	return status.Apps[0].Live.ID
}

// TestRegistryLogin: a host that has no credentials of its own pulls with the login of the environment, and what it has
// pulled is there for that environment alone.
func TestRegistryLogin(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	l.push("app", "v1", workloadImage(t, "1", nil))
	closed := l.closedRegistry(t)
	// Who deploys has docker's credentials, and the host looks elsewhere.
	l.dockerLogin(t, closed, "user", "right")
	mine := filepath.Join(l.dir, "mine")
	if err := os.Rename(filepath.Join(l.dir, "docker"), mine); err != nil {
		t.Fatal(err)
	}
	l.env = append(l.env, "DOCKER_CONFIG="+mine)
	m, image := l.manifest("app", web("app", port)), closed+"/app:v1"
	l.refuse(8, []string{"without credentials"}, "deploy", "-f", m, "--image", image)

	password := filepath.Join(l.dir, "password")
	if err := os.WriteFile(password, []byte("right\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	login := l.command("registry", "login", closed, "--username", "user", "-e", "dev")
	stdin, err := os.Open(password)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	login.Stdin = stdin
	if out, err := login.CombinedOutput(); err != nil {
		t.Fatalf("log in: %v\n%s", err, out)
	}
	l.must("deploy", "-f", m, "--image", image)
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("got %q", got)
	}
	l.must("env", "create", "prod")
	other := l.manifest("other", web("other", freePort(t)))
	l.refuse(8, []string{"has to show that it may have it", "without credentials"}, "deploy", "-e", "prod", "-f", other, "--image", image)
	l.must("registry", "logout", closed, "-e", "dev")
	l.must("restart", "app")
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("after a restart without a login: got %q", got)
	}
	l.must("stop", "app")
}
