package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestDeployUpdateRollback is the whole path: two versions, back again, and nobody who asks meanwhile is
// turned away.
func TestDeployUpdateRollback(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port))
	v1 := l.push("app", "v1", workloadImage(t, "1", nil))
	v2 := l.push("app", "v2", workloadImage(t, "2", nil))

	l.must("deploy", "-f", m, "--image", v1)
	if got := l.get(port, "/"); got != "version 1" {
		t.Fatalf("first deploy: got %q", got)
	}
	again := l.pinnace("deploy", "-f", m, "--image", v1)
	if again.status != 0 || !strings.Contains(again.stderr, "nothing to do") {
		t.Errorf("deploying what is live: %s", again)
	}

	l.plansWithoutEffect(t, m, v2)
	followed := l.follow(t, "app")

	load := startLoad(port)
	slow := make(chan string, 1)
	go func() {
		text, err := fetch(port, "/slow")
		slow <- fmt.Sprint(text, err)
	}()
	l.must("deploy", "-f", m, "--image", v2)
	if got := l.get(port, "/"); got != "version 2" {
		t.Errorf("second deploy: got %q", got)
	}
	l.must("rollback", "app")
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("rollback: got %q", got)
	}
	if got := <-slow; !strings.Contains(got, "done") {
		t.Errorf("a request under way during the rollout was cut: %s", got)
	}
	asked, failures := load.stop()
	if len(failures) > 0 || asked < 10 {
		t.Errorf("%d of %d requests failed during the rollouts: %v", len(failures), asked, failures)
	}
	t.Logf("%d requests, %d failed", asked, len(failures))
	if lines := followed(); !strings.Contains(lines, "listening, version 2") || !strings.Contains(lines, "got SIGTERM, stopping") {
		t.Errorf("logs -f did not show what came while it followed:\n%s", lines)
	}

	l.looksRight(t, port)
	l.must("stop", "app")
	if _, err := fetch(port, "/"); err == nil {
		t.Error("it still answers after stop")
	}
	if list := l.instances(); len(list) != 0 {
		t.Errorf("instances after stop: %v", list)
	}
	if logs := l.must("logs", "app"); !strings.Contains(logs, "got SIGTERM, stopping") {
		t.Errorf("the logs of the last instance cannot be read by the app's name: %q", logs)
	}
	verified := l.must("audit", "verify")
	if !strings.HasPrefix(verified, "ok ") {
		t.Errorf("audit verify: %q", verified)
	}
	l.exportVerifies(t)
}

// plansWithoutEffect checks that a plan says what would happen, that nothing does, and that a plan which is
// not true any more is refused.
func (l *lab) plansWithoutEffect(t *testing.T, manifest, image string) {
	t.Helper()
	before := l.instances()
	plan := l.pinnace("plan", "--exit-code", "-f", manifest, "--image", image)
	if plan.status != 10 || !strings.Contains(plan.stdout, " replaces ") || !strings.Contains(plan.stdout, "plan plan-") {
		t.Errorf("plan: %s", plan)
	}
	if after := l.instances(); len(after) != 1 || after[0].ID != before[0].ID {
		t.Errorf("a plan changed what runs: %+v, before %+v", after, before)
	}
	l.refuse(5, []string{"plan"}, "deploy", "-f", manifest, "--image", image, "--plan", "plan-0000000000000000")
}

// follow runs logs -f until the function that it returns is called, which returns what it has printed.
func (l *lab) follow(t *testing.T, app string) func() string {
	t.Helper()
	out := &lockedBuffer{}
	cmd := exec.Command(binary, "logs", "-f", app)
	cmd.Env, cmd.Stdout, cmd.Stderr = l.env, out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		// The last line may still be on its way.
		time.Sleep(500 * time.Millisecond)
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // that it was interrupted is known
		return out.String()
	}
}

// looksRight checks what the commands that show things say of one running instance.
func (l *lab) looksRight(t *testing.T, port int) {
	t.Helper()
	status := l.must("status")
	for _, want := range []string{"app", "1/1", fmt.Sprintf("tcp *:%d", port)} {
		if !strings.Contains(status, want) {
			t.Errorf("status does not say %q:\n%s", want, status)
		}
	}
	list := l.instances()
	if len(list) != 1 || list[0].State != "ready" {
		t.Fatalf("instances: %+v", list)
	}
	why := l.must("why", "app/0")
	for _, stage := range []string{"pull", "build", "network", "disks", "jail", "vmm", "kernel", "init", "exec", "ready"} {
		if !strings.Contains(why, "  "+stage) {
			t.Errorf("why does not show the stage %s:\n%s", stage, why)
		}
	}
	if logs := l.must("logs", "app"); !strings.Contains(logs, "listening, version 1") {
		t.Errorf("logs: %q", logs)
	}
	events := l.must("events")
	for _, kind := range []string{"release.created", "deployment.started", "instances.planned", "instance.started", "instance.ended", "deployment.finished"} {
		if !strings.Contains(events, kind) {
			t.Errorf("events do not show %s:\n%s", kind, events)
		}
	}
}

// exportVerifies checks the offline proof, and that it finds an edit.
func (l *lab) exportVerifies(t *testing.T) {
	t.Helper()
	export := l.must("audit", "export")
	path := l.manifest("export", export) // any file will do
	l.must("audit", "verify", "--file", path)
	// One letter of a stored payload is changed: base64 of a different event.
	i := strings.Index(export, `"payload_base64":"`) + len(`"payload_base64":"`) + 4
	edited := export[:i] + flip(export[i:i+1]) + export[i+1:]
	l.refuse(1, []string{"tampered", "event 1"}, "audit", "verify", "--file", l.manifest("edited", edited))
}

func flip(s string) string {
	if s == "A" {
		return "B"
	}
	return "A"
}

// load asks ten times a second.
type load struct {
	quit     chan struct{}
	wg       sync.WaitGroup
	asked    int
	failures []string
}

func startLoad(port int) *load {
	l := &load{quit: make(chan struct{})}
	l.wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.quit:
				return
			case <-tick.C:
			}
			l.asked++
			if _, err := fetch(port, "/"); err != nil {
				l.failures = append(l.failures, err.Error())
			}
		}
	})
	return l
}

func (l *load) stop() (asked int, failures []string) {
	close(l.quit)
	l.wg.Wait()
	return l.asked, l.failures
}

// TestProcessFollowsImageAndManifest checks what the process gets from both.
func TestProcessFollowsImageAndManifest(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	img := workloadImage(t, "1", imageConfigOfTest)
	ref := l.push("app", "v1", img)
	m := l.manifest("app", web("app", port)+`
command = ["--from", "manifest"]
workdir = "/made/by/init"
env = { VERSION = "manifest", ADDED = "yes" }
`)
	l.must("deploy", "-f", m, "--image", ref)
	var self struct {
		Args     []string `json:"args"`
		Env      []string `json:"env"`
		Cwd      string   `json:"cwd"`
		UID, GID int
		Groups   []int
		PID      int
		Hostname string
	}
	l.parse(l.get(port, "/self"), &self)
	if got := strings.Join(self.Args, " "); got != "/workload --from manifest" {
		t.Errorf("arguments: got %q", got)
	}
	if self.Cwd != "/made/by/init" {
		t.Errorf("working directory: got %q", self.Cwd)
	}
	if self.UID != 65532 || self.GID != 65533 {
		t.Errorf("user: got %d:%d, want 65532:65533", self.UID, self.GID)
	}
	env := strings.Join(self.Env, "\n")
	for _, want := range []string{"VERSION=manifest", "ADDED=yes", "FROM_IMAGE=kept", "PATH="} {
		if !strings.Contains(env, want) {
			t.Errorf("environment does not have %s:\n%s", want, env)
		}
	}
	if id := l.instances()[0].ID; self.Hostname != id {
		t.Errorf("host name: got %q, want %q", self.Hostname, id)
	}
}

// TestRestartPolicies checks that an instance that ends is started again, or not, as the manifest says.
func TestRestartPolicies(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	l.must("deploy", "-f", l.manifest("app", web("app", port)), "--image", ref)
	if _, err := fetch(port, "/exit?code=3"); err == nil {
		t.Fatal("the workload did not exit")
	}
	l.eventually(60*time.Second, "the second attempt is ready", func() error {
		i := l.instances()[0]
		if i.Attempt < 2 || i.State != "ready" {
			return fmt.Errorf("%+v", i)
		}
		return nil
	})
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("after the restart: got %q", got)
	}
	if events := l.must("events", "--json"); !strings.Contains(events, `"code":3`) {
		t.Errorf("the exit status is not in the events:\n%s", events)
	}
	// The logs of both attempts are there.
	if logs := l.must("logs", "app"); strings.Count(logs, "listening") != 2 || !strings.Contains(logs, "exiting on request, with 3") {
		t.Errorf("logs: %q", logs)
	}

	// A one-off that succeeds is completed.
	once := l.manifest("once", `schema = "v1"
name = "once"
resources = { memory = "128MiB", disk = "64MiB" }
command = ["exit", "0"]
restart = "never"
rollout = { hold = "0s" }
`)
	l.must("deploy", "-f", once, "--image", ref)
}

// TestReleaseBinaryIsOneStaticFile checks what is shipped.
func TestReleaseBinaryIsOneStaticFile(t *testing.T) {
	if skip != "" {
		t.Skip(skip)
	}
	if interp := elfInterpreter(t, binary); interp != "" {
		t.Errorf("%s needs %s", filepath.Base(binary), interp)
	}
}

// TestKeepAliveConnectionMovesOn checks that a client that keeps its connection is not stuck to the past:
// it is cut when the drain time is over, and its next request is answered by the new version.
func TestKeepAliveConnectionMovesOn(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port))
	l.must("deploy", "-f", m, "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	client := &http.Client{Timeout: 10 * time.Second}
	ask := func() error {
		res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return err
		}
		return res.Body.Close()
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	l.must("deploy", "-f", m, "--image", l.push("app", "v2", workloadImage(t, "2", nil)))
	if err := ask(); err != nil {
		t.Errorf("after the rollout: %v", err)
	}
}
