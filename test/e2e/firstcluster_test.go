package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// page is what TestFirstCluster follows word for word.
const page = "../../docs/operate/first-cluster.md"

// A block is a code block of the page, and the machines that it is typed on.
type block struct {
	machines []string
	text     string
	line     int
}

// blocks are those of the page that begin with "sh" and the names of machines.
func blocks(t *testing.T) (all []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```sh ([a-z0-9 ]+)\n(.*?)^```$").FindAllSubmatchIndex(text, -1) {
		all = append(all, block{
			machines: strings.Fields(string(text[m[2]:m[3]])), text: string(text[m[4]:m[5]]), line: 1 + bytes.Count(text[:m[0]], []byte("\n")),
		})
	}
	if fences := bytes.Count(text, []byte("```")); fences != 2*len(all) {
		t.Fatalf("%s has %d fences and %d blocks that say where they are typed", page, fences, len(all))
	}
	return all
}

// A shell is one in which blocks are typed one after the other. It ends at the first command that fails.
type shell struct {
	t    *testing.T
	name string
	in   io.WriteCloser
	out  *lockedBuffer
	end  chan error
}

// ownRoot is what makes a machine one of its own: what the page names is on disks of its own, under the names of the page.
const ownRoot = `set -e
mount --make-rprivate /
if [ "$1" != server ]; then
	mkdir -p "$0/var/lib/pinnace/kernels"
	mount --bind "$2" "$0/var/lib/pinnace/kernels" # before its place is hidden
fi
for place in var/lib/pinnace run/pinnace etc/pinnace root var/run/postgresql; do
	mkdir -p "/$place" "$0/$place"
	mount --rbind "$0/$place" "/$place"
done
echo ready
exec cat`

// settle gives a machine a root of its own, from a process that keeps it.
func (m *machine) settle() {
	m.site.t.Helper()
	t := m.site.t
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := m.command("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", ownRoot, m.dir, m.name, kernels)
	in, err := cmd.StdinPipe()
	said := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("give %s a root of its own: %v", m.name, err)
	}
	m.root = &namespace{keeper: cmd, hold: in}
	m.site.eventually(time.Minute, m.name+" has a root of its own", func() error {
		if !strings.Contains(said.String(), "ready") {
			return errors.New(said.String())
		}
		return nil
	})
	program := "#!/bin/sh\n"
	if m.name != "server" {
		// All that tells hosts on one kernel apart: other user ids, and another name for the cgroups.
		program += fmt.Sprintf("[ \"$1\" = agent ] && { shift; exec %s agent --run-dir /run/pinnace/%s --first-uid %d --uplink none --driver qemu --stop-vms \"$@\"; }\n",
			m.binary, m.name, 700000+1000*int(m.name[1]))
	}
	m.site.script(m.name+"/bin/pinnace", program+"exec "+m.binary+" \"$@\"\n")
	// No machine has a door for scp; what is copied arrives all the same.
	m.site.script(m.name+"/bin/scp", "#!/bin/sh\nto=${2%%:*} name=${2#*:}\nexec cp \"$1\" \"$SITE/$(cat $SITE/address-$to)/root/$name\"\n")
	m.site.write("address-"+m.address, m.name)
}

func (s *site) script(name, text string) {
	s.t.Helper()
	if err := os.Chmod(s.write(name, text), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// within is a command that sees the machine's own root.
func (m *machine) within(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", fmt.Sprint(m.root.keeper.Process.Pid), "--net", "--mount", "--root", "--wd", "--"}, args...)...)
}

func (m *machine) shell() *shell {
	t := m.site.t
	t.Helper()
	cmd := m.within("env", "-i", "HOME=/root", "SITE="+m.site.dir, "PATH="+filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"), "sh", "-e")
	in, err := cmd.StdinPipe()
	sh := &shell{t: t, name: m.name, in: in, out: &lockedBuffer{}, end: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = sh.out, sh.out
	cmd.WaitDelay = 5 * time.Second
	if err == nil {
		_, err = io.WriteString(in, "cd\n")
		err = errors.Join(err, cmd.Start())
	}
	if err != nil {
		t.Fatalf("a shell on %s: %v", m.name, err)
	}
	go func() { sh.end <- cmd.Wait() }()
	return sh
}

// types runs a block to its end, and shows what came.
func (sh *shell) types(b block, patience time.Duration) {
	sh.t.Helper()
	const mark = "--- the block has ended ---"
	before := len(sh.out.String())
	began := time.Now()
	if _, err := io.WriteString(sh.in, b.text+"\necho '"+mark+"'\n"); err != nil {
		sh.t.Fatalf("%s: line %d: %v", sh.name, b.line, err)
	}
	for {
		said := sh.out.String()[before:]
		text, ended := strings.CutSuffix(said, mark+"\n")
		if ended {
			sh.t.Logf("%s, line %d of the page, %s:\n%s%s", sh.name, b.line, time.Since(began).Round(time.Second), indent("$ ", b.text), text)
			return
		}
		select {
		case err := <-sh.end:
			sh.end <- err
			sh.t.Fatalf("%s, line %d of the page, failed (%v):\n%s%s", sh.name, b.line, err, indent("$ ", b.text), sh.out.String()[before:])
		case <-time.After(100 * time.Millisecond):
		}
		if time.Since(began) > patience {
			sh.t.Fatalf("%s, line %d of the page, is not done within %s:\n%s%s", sh.name, b.line, patience, indent("$ ", b.text), said)
		}
	}
}

func indent(with, text string) string {
	return with + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}

// postgres has PostgreSQL on a machine as Debian's package leaves it: its user has a superuser of its name, and others
// give a password over TCP.
func (m *machine) postgres() {
	t := m.site.t
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		t.Skip("needs PostgreSQL: apt-get install postgresql")
	}
	bin := bins[len(bins)-1]
	data := filepath.Join(m.dir, "postgres")
	for _, command := range []string{
		"mkdir -p " + data + " && chown postgres " + data + " /var/run/postgresql && chmod 755 " + m.site.dir + " " + m.dir,
		"su postgres -c '" + bin + "/initdb -D " + data + " --auth-local=peer --auth-host=scram-sha-256 --no-sync -E UTF8 --locale=C'",
		"su postgres -c '" + bin + "/pg_ctl -D " + data + " -w -t 120 -l " + data + "/log -o \"-c listen_addresses=127.0.0.1\" start'",
	} {
		if out, err := m.within("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	m.stops = append(m.stops, "su postgres -c '"+bin+"/pg_ctl -D "+data+" -m immediate stop'")
}

// builds puts images where the page expects those of a build.
func (m *machine) builds(images map[string]v1.Image) {
	t := m.site.t
	t.Helper()
	for image, img := range images {
		tag, err := name.NewTag(image)
		path := filepath.Join(m.dir, "root", "images", strings.Replace(image, ":", "-", 1)+".tar")
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), tarball.WriteToFile(path, tag, img))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestFirstCluster follows docs/operate/first-cluster.md, word for word.
func TestFirstCluster(t *testing.T) {
	steps := blocks(t)
	for _, place := range []string{"/etc/pinnace", "/run/pinnace"} {
		if _, err := os.Stat(place); errors.Is(err, fs.ErrNotExist) {
			t.Cleanup(func() { _ = os.Remove(place) }) // where the machines mount theirs; after the site has ended
		}
	}
	s := newSite(t, "h1", "h2", "h3")
	for _, program := range []string{"docker-registry", "skopeo", "curl", "su", "setsid", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("needs ", program)
		}
	}
	s.closeImages() // the page has a registry of its own
	shells := map[string]*shell{}
	for _, m := range append([]*machine{s.server}, s.hosts["h1"], s.hosts["h2"], s.hosts["h3"]) {
		m.settle()
		shells[m.name] = m.shell()
	}
	s.server.postgres()
	broken := func(c *v1.Config) { c.Entrypoint = []string{"/nosuch"} }
	s.server.builds(map[string]v1.Image{
		"shop:v1": workloadImage(t, "1", nil), "shop:v2": workloadImage(t, "2", nil),
		"shop:broken": workloadImage(t, "broken", broken),
	})
	postgresImage(t, t.TempDir(), filepath.Join(s.server.dir, "root", "images", "postgres-17.tar"), "postgres:17")
	for _, b := range steps {
		for _, name := range b.machines {
			if shells[name] == nil {
				t.Fatalf("line %d of the page: there is no machine %s", b.line, name)
			}
			shells[name].types(b, 15*time.Minute)
		}
	}
}

// endRoot ends what has been started in a root of the machine's own.
func (m *machine) endRoot() {
	if m.root == nil {
		return
	}
	for _, command := range m.stops {
		if out, err := m.within("sh", "-c", command).CombinedOutput(); err != nil {
			m.site.t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	// An agent that is told to end stops what it runs, and takes the longest.
	for _, patience := range []time.Duration{2 * time.Minute, 0} {
		pids := m.inside()
		for _, pid := range pids {
			how := syscall.SIGTERM
			if patience == 0 {
				how = syscall.SIGKILL
			}
			_ = syscall.Kill(pid, how)
		}
		for deadline := time.Now().Add(patience); time.Now().Before(deadline) && len(m.inside()) > 0; {
			time.Sleep(200 * time.Millisecond)
		}
	}
	if left := m.inside(); len(left) > 0 {
		m.site.t.Logf("%s has processes left: %v", m.name, left)
	}
	m.root.end()
}

// inside are the pinnace commands and shells that run in the machine's mount namespace, its keeper excepted.
func (m *machine) inside() (pids []int) {
	mine, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", m.root.keeper.Process.Pid))
	if err != nil {
		return nil
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	for _, path := range links {
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/ns/mnt", &pid); err != nil || pid == m.root.keeper.Process.Pid {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		wanted := slices.Contains([]string{"pinnace", "docker-registry", "sh"}, strings.TrimSpace(string(name)))
		if is, err := os.Readlink(path); err == nil && is == mine && wanted {
			pids = append(pids, pid)
		}
	}
	return pids
}
