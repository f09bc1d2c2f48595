package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// start runs the site's server, with more flags, and makes the environment prod.
func (s *site) start(flags ...string) {
	s.t.Helper()
	s.server.args = append([]string{
		"server", "--data-dir", filepath.Join(s.server.dir, "data"), "--run-dir", filepath.Join(s.server.dir, "run"),
		"--agent-listen", s.server.address + ":7401",
	}, flags...)
	s.server.run()
	s.await(s.server, "the server is up")
	token, err := os.ReadFile(filepath.Join(s.server.dir, "data", "server", "keys", "admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.env = append(s.env, "PINNACE_TOKEN="+strings.TrimSpace(string(token)))
	s.must("env", "create", "prod")
}

// admit has a host join, with labels. Its machines are of its own user ids.
func (s *site) admit(name string, labels ...string) *machine {
	s.t.Helper()
	m := s.hosts[name]
	var n int
	if _, err := fmt.Sscanf(m.address, "10.77.0.%d", &n); err != nil {
		s.t.Fatal(err)
	}
	token := s.write(name+".token", s.must("host", "join-token", name))
	m.args = []string{
		"agent", "--data-dir", filepath.Join(m.dir, "data"), "--run-dir", filepath.Join(m.dir, "run"), "--host-id", name, "--kernels", kernels,
		"--agent-server", "https://" + s.server.address + ":7401", "--token-file", token, "--peer-listen", m.address + ":7402",
		"--uplink", "none", "--first-uid", fmt.Sprint(700000 + 1000*n), "--driver", "qemu",
	}
	if !s.leaves {
		m.args = append(m.args, "--stop-vms")
	}
	for _, l := range labels {
		m.args = append(m.args, "--label", l)
	}
	m.run()
	s.await(m, "joined the server")
	return m
}

// deploy deploys version of an app that answers at a public port on all hosts.
func (s *site) deploy(app, version string, port int, more string) {
	s.t.Helper()
	text := strings.Replace(web(app, port), `boot_timeout = "60s"`, `boot_timeout = "5m"`, 1)
	image := workloadImage(s.t, version, func(c *v1.Config) { c.Env = append(c.Env, "PORTS=1") })
	s.must("deploy", "-e", "prod", "-f", s.write(app+".toml", text+more), "--image", s.push(app, version, image))
}

// answers waits until a port of every one of some hosts answers with what is wanted.
func (s *site) answers(port int, want string, from ...string) {
	s.t.Helper()
	for _, name := range from {
		m := s.hosts[name]
		s.eventually(90*time.Second, fmt.Sprintf("port %d of %s answers %q", port, name, want), func() error {
			// Who comes from outside asks one host and may be answered by another.
			got, err := s.server.get(fmt.Sprintf("%s:%d", m.address, port), "/")
			if err == nil && got != want {
				err = fmt.Errorf("got %q", got)
			}
			return err
		})
	}
}

// echoes waits until the UDP port of every one of some hosts gives back what it is sent.
func (s *site) echoes(port int, from ...string) {
	s.t.Helper()
	for _, name := range from {
		at := fmt.Sprintf("%s:%d", s.hosts[name].address, port)
		// Small, and larger than a packet: it is in several on the way to the host, and one between hosts.
		for _, want := range []string{"hello " + name, strings.Repeat(name, 4000)} {
			s.eventually(90*time.Second, fmt.Sprintf("UDP port %d of %s gives back %d bytes", port, name, len(want)), func() error {
				conn, err := s.server.dial(s.t.Context(), "udp", at)
				if err != nil {
					return err
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
				got := make([]byte, 64<<10)
				n := 0
				if _, err = conn.Write([]byte(want)); err == nil {
					n, err = conn.Read(got)
				}
				if err == nil && string(got[:n]) != want {
					err = fmt.Errorf("got %.100q", got[:n])
				}
				return err
			})
		}
	}
}

// orderOf are the events of what became of an instance whose host was lost: its successor was placed elsewhere, the
// instance was asked to stop, and it ended. One that is missing is 0.
func (s *site) orderOf(lost, host string) []int {
	s.t.Helper()
	order := []int{0, 0, 0}
	note := func(which, seq int) {
		if order[which] == 0 {
			order[which] = seq
		}
	}
	began := false
	for line := range strings.Lines(s.must("events", "--json")) {
		var e struct {
			Seq     int
			Type    string
			Payload json.RawMessage
		}
		parse(s.t, line, &e)
		var p struct {
			Instance string
			Start    []struct{ Instance, Host string }
			Stop     []string
		}
		if e.Type == "instances.planned" || e.Type == "instance.ended" {
			parse(s.t, string(e.Payload), &p)
		}
		for _, start := range p.Start {
			switch {
			case start.Instance == lost:
				began = true
			case began && strings.HasPrefix(start.Instance, "web-") && start.Host != host:
				note(0, e.Seq)
			}
		}
		if slices.Contains(p.Stop, lost) {
			note(1, e.Seq)
		}
		if e.Type == "instance.ended" && p.Instance == lost {
			note(2, e.Seq)
		}
	}
	return order
}

// TestFleet has three hosts, whose ports and names lead to each other, and loses and empties some of them.
func TestFleet(t *testing.T) {
	s := newSite(t, "h1", "h2", "h3")
	s.start()
	for _, name := range []string{"h1", "h2", "h3"} {
		s.admit(name, "name="+name)
	}

	s.must("place", "-e", "prod", "asks", "name=h3")
	s.deploy("web", "1", 80, "ports.echo = { port = 5300, protocol = \"udp\", expose = \"public\", edge = \"raw\", public_port = 5353 }\n")
	s.deploy("asks", "1", 81, "")
	const page = "version 1"
	s.answers(80, page, "h1", "h2", "h3")
	s.echoes(5353, "h1", "h2", "h3")

	// From inside, on h3: the virtual address, and the name of one instance, wherever that is.
	asks := func(path string) string {
		t.Helper()
		got, err := s.server.get(s.hosts["h1"].address+":81", path)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, name := range []string{"web.internal:8080", "0.web.internal:8080"} {
		if got := asks("/reach?addr=" + url.QueryEscape(name)); got != "open" {
			t.Errorf("from another host, %s is %q", name, got)
		}
	}

	for _, name := range []string{"web.internal:5300", "0.web.internal:5300"} {
		if got := asks("/udp?text=hello&addr=" + url.QueryEscape(name)); got != "hello" {
			t.Errorf("from another host, %s answers %q over UDP", name, got)
		}
	}

	t.Run("a server that is away stops nothing", func(t *testing.T) {
		before := s.placed("web")
		s.server.signal(syscall.SIGKILL)
		s.answers(80, page, "h1", "h2", "h3")
		// An agent that comes back without a server takes over what there is.
		for id := range before {
			m := s.hosts[before[id]]
			m.signal(syscall.SIGKILL)
			m.out = &lockedBuffer{}
			m.run()
			s.await(m, "took over")
		}
		s.answers(80, page, "h1", "h2", "h3")
		s.server.out = &lockedBuffer{}
		s.server.run()
		s.await(s.server, "the server is up")
		s.eventually(90*time.Second, "all is as before", func() error {
			if after := s.placed("web"); fmt.Sprint(after) != fmt.Sprint(before) {
				return fmt.Errorf("%v, and before %v", after, before)
			}
			return nil
		})
	})

	t.Run("a lost host", func(t *testing.T) {
		before := s.placed("web")
		var lost, id string
		for id, lost = range before {
		}
		if s.hosts[lost].microVMs()[id+".1"] == nil {
			t.Fatalf("%s does not run %s: %v", lost, id, s.hosts[lost].microVMs())
		}
		began := time.Now()
		s.hosts[lost].cut()
		s.eventually(3*time.Minute, "a successor is ready", func() error {
			for successor, host := range s.placed("web") {
				if successor != id && host != lost {
					return nil
				}
			}
			return errors.New("none yet")
		})
		t.Logf("a successor was ready %s after its host was cut off", time.Since(began).Round(time.Second))
		s.answers(80, page, s.others(lost)...)
		s.echoes(5353, s.others(lost)...)
		s.hosts[lost].join()
		s.eventually(2*time.Minute, "one instance is left", func() error {
			if now := s.placed("web"); len(now) != 1 || now[id] != "" {
				return fmt.Errorf("%v", now)
			}
			if pids := s.hosts[lost].microVMs()[id+".1"]; pids != nil {
				return fmt.Errorf("processes %v of %s still run", pids, id)
			}
			return nil
		})
		s.answers(80, page, "h1", "h2", "h3")
		s.eventually(time.Minute, "a successor was placed, and the lost one was asked to stop and ended", func() error {
			if order := s.orderOf(id, lost); !slices.IsSorted(order) || slices.Contains(order, 0) {
				return fmt.Errorf("the events are %v", order)
			}
			return nil
		})
	})

	s.must("place", "-e", "prod", "asks", "--anywhere") // it is on h3 alone, and nothing would ever leave that
	t.Run("a drained host", func(t *testing.T) {
		var host string
		for _, host = range s.placed("web") {
		}
		s.must("host", "drain", host, "--wait")
		for id, on := range s.placed("web") {
			if on == host {
				t.Errorf("%s is still on %s", id, host)
			}
		}
		s.answers(80, page, "h1", "h2", "h3")
		s.must("host", "undrain", host)
		s.must("host", "drain", host, "--wait")
		s.hosts[host].signal(os.Interrupt)
		s.hosts[host].args = nil
		s.eventually(time.Minute, "the host is removed", func() error {
			if r := s.pinnace("host", "remove", host); r.status != 0 {
				return errors.New(r.stderr)
			}
			return nil
		})
		if out := s.must("host", "list"); strings.Contains(out, host) {
			t.Errorf("it is still listed:\n%s", out)
		}
		s.answers(80, page, s.others(host)...)
	})
}
