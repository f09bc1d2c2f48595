package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

// A site is machines joined by a bridge of their own: network namespaces with private addresses, of which nothing leads
// to the machine that the test runs on. The first has the server and a registry. Each has its own directories.
type site struct {
	t        *testing.T
	dir      string
	hub      *namespace
	all      []*namespace // to end
	server   *machine
	hosts    map[string]*machine
	env      []string
	registry string // where images are pushed and pulled
	images   *http.Server
	leaves   bool // whether agents that end leave their microVMs to the next
}

// A machine is a namespace with an address on the bridge and what runs there.
type machine struct {
	*namespace
	site    *site
	name    string
	address string
	dir     string
	args    []string // of its server or agent
	binary  string
	cmd     *exec.Cmd
	ended   chan error
	out     *lockedBuffer
	root    *namespace // keeps a root of its own; nil for most
	stops   []string   // commands that end what runs there
}

// newSite makes a site whose server does not run yet.
func newSite(t *testing.T, hosts ...string) *site {
	t.Helper()
	if skip != "" {
		t.Skip(skip)
	}
	for _, program := range []string{"ip", "nsenter", "cat"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs ", program, ": apt-get install iproute2 util-linux")
		}
	}
	dir, err := os.MkdirTemp("", "pinsite-") //nolint:usetesting // What is left in it is looked for, and paths of sockets are short.
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir, hosts: map[string]*machine{}, registry: "10.77.0.1:5000"}
	t.Cleanup(s.end)
	s.hub = newNamespace(t)
	s.all = append(s.all, s.hub)
	s.hub.ip(t, "link", "add", "br0", "type", "bridge")
	s.hub.ip(t, "link", "set", "br0", "up")
	s.env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "XDG_STATE_HOME="+filepath.Join(dir, "state"), "HOME="+dir,
		"SUDO_USER=", "PINNACE_SERVER=", "PINNACE_TOKEN=", "PINNACE_ENV=", "PINNACE_CONFIG_DIR="+filepath.Join(dir, "etc"), "DOCKER_CONFIG="+filepath.Join(dir, "docker"))
	s.write("etc/registries.toml", fmt.Sprintf("[registries.%q]\nplain_http = true\n", s.registry))
	s.server = s.machine("server", 1)
	for n, host := range hosts {
		s.hosts[host] = s.machine(host, 11+n)
	}
	s.serveImages()
	return s
}

func (s *site) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// machine makes one with the address 10.77.0.N.
func (s *site) machine(name string, n int) *machine {
	s.t.Helper()
	m := &machine{
		namespace: newNamespace(s.t), site: s, name: name, address: fmt.Sprintf("10.77.0.%d", n), dir: filepath.Join(s.dir, name),
		binary: binary, out: &lockedBuffer{},
	}
	s.all = append(s.all, m.namespace)
	port := fmt.Sprintf("p%d", n)
	s.hub.ip(s.t, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(m.keeper.Process.Pid))
	s.hub.ip(s.t, "link", "set", port, "master", "br0", "up")
	m.ip(s.t, "address", "add", m.address+"/24", "dev", "eth0")
	m.ip(s.t, "link", "set", "eth0", "up")
	m.ip(s.t, "link", "set", "lo", "up")
	return m
}

// serveImages has a registry on the server's machine.
func (s *site) serveImages() {
	s.t.Helper()
	var l net.Listener
	err := s.server.do(func() (err error) {
		l, err = net.Listen("tcp", s.registry)
		return err
	})
	if err != nil {
		s.t.Fatalf("listen for a registry: %v", err)
	}
	srv := &http.Server{Handler: registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug))), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	s.images = srv
	s.t.Cleanup(func() { _ = srv.Close(); <-served })
}

// closeImages ends the site's registry.
func (s *site) closeImages() { _ = s.images.Close() }

// push puts an image into the site's registry and returns its reference.
func (s *site) push(repository, tag string, img v1.Image) string {
	s.t.Helper()
	text := s.registry + "/" + repository + ":" + tag
	ref, err := name.ParseReference(text, name.Insecure)
	if err == nil {
		err = remote.Write(ref, img, remote.WithTransport(&http.Transport{DialContext: s.server.dial, DisableKeepAlives: true}))
	}
	if err != nil {
		s.t.Fatalf("push %s: %v", text, err)
	}
	return text
}

// run starts the machine's server or agent.
func (m *machine) run() {
	m.site.t.Helper()
	m.cmd = m.command(append([]string{m.binary}, m.args...)...)
	m.cmd.Env = m.site.env
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.out
	m.cmd.WaitDelay = 5 * time.Second // the proxy has its stderr too, and outlives it
	if err := m.cmd.Start(); err != nil {
		m.site.t.Fatalf("start %s: %v", m.name, err)
	}
	m.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan<- error) { ended <- cmd.Wait() }(m.cmd, m.ended)
}

// signal ends what run has started, and waits for it.
func (m *machine) signal(with os.Signal) {
	m.site.t.Helper()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Signal(with) // it may have ended, which comes out below
	select {
	case <-m.ended:
	case <-time.After(time.Minute):
		_ = m.cmd.Process.Kill()
		<-m.ended
		m.site.t.Errorf("%s does not end after %v\n%s", m.name, with, m.out)
	}
	m.cmd = nil
}

// cut takes the machine off the bridge, and join brings it back.
func (m *machine) cut()  { m.ip(m.site.t, "link", "set", "eth0", "down") }
func (m *machine) join() { m.ip(m.site.t, "link", "set", "eth0", "up") }

// microVMs are the processes of those that an agent runs here, by the names of their attempts. Nothing of the machine's is
// in their command lines; their cgroups are named after the agent's run directory.
func (m *machine) microVMs() map[string][]int {
	run := filepath.Join(m.dir, "run")
	if m.root != nil {
		run = filepath.Join("/run/pinnace", m.name)
	}
	parent := fmt.Sprintf("pinnace/%x", sha256.Sum256([]byte(filepath.Join(run, "agent"))))[:len("pinnace/")+12]
	found := map[string][]int{}
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory"} {
		lists, _ := filepath.Glob(filepath.Join(hierarchy, parent, "*", "cgroup.procs"))
		for _, path := range lists {
			b, _ := os.ReadFile(path)
			for word := range strings.FieldsSeq(string(b)) {
				var pid int
				if _, err := fmt.Sscan(word, &pid); err == nil {
					attempt := filepath.Base(filepath.Dir(path))
					found[attempt] = append(found[attempt], pid)
				}
			}
		}
	}
	return found
}

// processes are those that have the machine's directory in their command line, and its microVMs.
func (m *machine) processes() (pids []int) {
	for _, vm := range m.microVMs() {
		pids = append(pids, vm...)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, _ := os.ReadFile(path)
		var pid int
		if bytes.Contains(b, []byte(m.dir+"/")) {
			if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// end stops everything and looks for what is left.
func (s *site) end() {
	all := []*machine{}
	for _, m := range s.hosts {
		all = append(all, m)
	}
	if s.server != nil {
		all = append(all, s.server)
	}
	if s.t.Failed() {
		for _, m := range all {
			s.t.Logf("%s said:\n%s", m.name, m.out)
		}
	}
	for _, m := range all {
		if m.name == "server" {
			continue
		}
		if len(m.args) == 0 {
			continue
		}
		// One that has left its machines to the next has another one end them.
		if s.leaves || m.cmd == nil {
			m.signal(syscall.SIGKILL)
			m.args, m.out = append(m.args, "--stop-vms"), &lockedBuffer{}
			m.run()
			m.says(time.Minute, "joined the server", "the server is away")
		}
		m.signal(os.Interrupt)
	}
	if s.server != nil {
		s.server.signal(os.Interrupt)
	}
	for _, m := range all {
		m.endRoot()
	}
	for _, m := range all {
		for _, pid := range m.processes() {
			s.t.Errorf("%s left process %d behind. It said:\n%s", m.name, pid, m.out)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], s.dir+"/") {
			s.t.Errorf("left behind: mount %s", line)
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
	for _, n := range s.all {
		n.end()
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
}

// says waits until a machine has said one of some words, and tells whether it has.
func (m *machine) says(patience time.Duration, words ...string) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if text := m.out.String(); slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) }) {
			return true
		}
	}
	return false
}

// await waits until a machine has said something.
func (s *site) await(m *machine, what string) {
	s.t.Helper()
	s.eventually(90*time.Second, m.name+" says "+what, func() error {
		if strings.Contains(m.out.String(), what) {
			return nil
		}
		select {
		case err := <-m.ended:
			m.ended <- err
			s.t.Fatalf("%s ended: %v\n%s", m.name, err, m.out)
		default:
		}
		return errors.New("not yet")
	})
}

func (s *site) eventually(patience time.Duration, what string, check func() error) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s: %v", patience, what, err)
		}
	}
}

// pinnace runs a command line on the server's machine.
func (s *site) pinnace(args ...string) result {
	s.t.Helper()
	cmd := s.server.command(append([]string{s.server.binary}, args...)...)
	cmd.Dir, cmd.Env = s.dir, s.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("pinnace %v: %v", args, err)
	}
	stop := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	_ = cmd.Wait() // its status says
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (s *site) must(args ...string) string {
	s.t.Helper()
	r := s.pinnace(args...)
	if r.status != 0 {
		s.t.Fatalf("pinnace %s: %s", strings.Join(args, " "), r)
	}
	return r.stdout
}

// get fetches a page of an address, from a machine.
func (m *machine) get(address, path string) (string, error) {
	transport := &http.Transport{DialContext: m.dial, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s answered %s: %s", path, res.Status, b)
	}
	return strings.TrimSpace(string(b)), err
}

// placed is where the instances of an app run that are ready, by their ids.
func (s *site) placed(app string) map[string]string {
	s.t.Helper()
	var list struct {
		Instances []struct{ ID, App, State, Host string }
	}
	parse(s.t, s.must("instances", "-e", "prod", "--json", app), &list)
	on := map[string]string{}
	for _, i := range list.Instances {
		if i.State == "ready" {
			on[i.ID] = i.Host
		}
	}
	return on
}

// others are the hosts besides some.
func (s *site) others(than ...string) (names []string) {
	for name := range s.hosts {
		if !slices.Contains(than, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
