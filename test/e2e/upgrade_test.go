package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// buildVersion builds the program of this tree with the stamp of another version.
func buildVersion(t *testing.T, dir, version string) string {
	t.Helper()
	out := filepath.Join(dir, "pinnace-"+version)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", out, "./cmd/pinnace")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build version %s: %v\n%s", version, err, text)
	}
	return out
}

// upgrade has a machine go on with another program. Its microVMs and connections are none of that.
func (m *machine) upgrade(program, says string) {
	m.site.t.Helper()
	m.signal(syscall.SIGTERM)
	m.binary, m.out = program, &lockedBuffer{}
	m.run()
	m.site.await(m, says)
}

// TestUpgrade upgrades the server and the agents in the middle of a deploy, and then takes the server back. The deploy
// goes on where it was, nothing is restarted by any of it, and the port answers all the time.
func TestUpgrade(t *testing.T) {
	s := newSite(t, "h1", "h2")
	next := buildVersion(t, s.dir, "v9.9.9-next")
	s.start()
	for _, name := range []string{"h1", "h2"} {
		s.leaves = true
		s.admit(name)
	}
	text := strings.Replace(web("web", 80), `boot_timeout = "60s"`, `boot_timeout = "5m", max_parallel = 1`, 1)
	text = strings.Replace(text, `hold = "500ms"`, `hold = "5s"`, 1)
	manifest := s.write("web.toml", text)
	s.must("deploy", "-e", "prod", "-f", manifest, "--image", s.push("web", "v1", workloadImage(t, "1", nil)))
	s.must("scale", "-e", "prod", "web", "2")
	s.eventually(2*time.Minute, "two are ready", func() error {
		if on := s.placed("web"); len(on) != 2 {
			return fmt.Errorf("%v", on)
		}
		return nil
	})
	s.answers(80, "version 1", "h1", "h2")
	old := s.placed("web")

	watching, stop := context.WithCancel(t.Context())
	defer stop()
	var watch sync.WaitGroup
	asked, failures := 0, []string(nil)
	watch.Go(func() {
		for n := 0; watching.Err() == nil; n++ {
			host := []string{"h1", "h2"}[n%2]
			got, err := s.server.get(s.hosts[host].address+":80", "/")
			if asked++; err != nil || got != "version 1" && got != "version 2" {
				failures = append(failures, fmt.Sprintf("%s: %q, %v", host, got, err))
			}
			time.Sleep(100 * time.Millisecond)
		}
	})

	s.must("deploy", "-e", "prod", "-f", manifest, "--image", s.push("web", "v2", workloadImage(t, "2", nil)), "--no-wait")
	s.eventually(3*time.Minute, "the first of the new ones is ready", func() error {
		for id := range s.placed("web") {
			if old[id] == "" {
				return nil
			}
		}
		return errors.New("not yet")
	})
	s.server.upgrade(next, "the server is up")
	s.hosts["h1"].upgrade(next, "joined the server")
	s.hosts["h2"].upgrade(next, "joined the server")
	s.must("wait", "-e", "prod", "web", "--timeout", "5m")

	stop()
	watch.Wait()
	if len(failures) > 0 {
		t.Errorf("%d of %d requests were not answered: %q", len(failures), asked, failures[:min(len(failures), 5)])
	}
	s.answers(80, "version 2", "h1", "h2")
	hosts := s.must("host", "list")
	if strings.Count(hosts, "v9.9.9-next") != 2 {
		t.Errorf("not all agents say the new version:\n%s", hosts)
	}
	var list struct {
		Instances []struct {
			ID      string
			State   string
			Attempt int
		}
	}
	parse(t, s.must("instances", "-e", "prod", "--json", "web", "--all"), &list)
	if len(list.Instances) != 4 {
		t.Errorf("want two old and two new instances: %+v", list.Instances)
	}
	for _, i := range list.Instances {
		if i.Attempt != 1 {
			t.Errorf("it was restarted: %+v", i)
		}
	}

	// The version before takes over again from the newer one, with newer agents, and a command line that is newer too.
	now := s.placed("web")
	s.server.upgrade(binary, "the server is up")
	s.hosts["h1"].upgrade(binary, "joined the server")
	s.eventually(90*time.Second, "all is as before", func() error {
		if after := s.placed("web"); fmt.Sprint(after) != fmt.Sprint(now) {
			return fmt.Errorf("%v, and before %v", after, now)
		}
		return nil
	})
	s.answers(80, "version 2", "h1", "h2")
	s.must("rollback", "-e", "prod", "web")
	s.answers(80, "version 1", "h1", "h2")
	t.Logf("%d requests were answered during the deploy and its upgrades", asked)
}
