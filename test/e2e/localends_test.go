package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLocalEnds runs what ends in different ways.
func TestLocalEnds(t *testing.T) {
	l := newRegistryLab(t)
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	for name, c := range map[string]struct {
		manifest string
		args     []string
		status   int
		words    []string
	}{
		"hungry":  {job("hungry", `command = ["eat"]`), nil, 8, []string{"ran out of memory", "hint: give it more resources.memory"}},
		"nothing": {job("nothing", `entrypoint = ["/not/there"]`), nil, 8, []string{"could not be started", "/not/there"}},
		"before": {
			job("before", "command = [\"exit\", \"0\"]\nrollout.before = { command = [\"/workload\", \"exit\", \"0\"] }"),
			[]string{"--before"},
			0,
			[]string{"running rollout.before", "rollout.before has done its work", "before has done its work"},
		},
		"broken": {
			job("broken", "rollout.before = { command = [\"/workload\", \"exit\", \"3\"] }"),
			[]string{"--before"},
			8,
			[]string{"error: rollout.before failed: the process exited with status 3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			r := l.local(append([]string{"-f", l.manifest(name, c.manifest), "--image", ref}, c.args...)...)
			r.ends(c.status, c.words...)
		})
	}
	l.t = t

	// What fails to start is not tried again, and what ends is, unless told otherwise.
	always := strings.ReplaceAll(job("again", `command = ["exit", "3"]`), `"never"`, `"always"`)
	r := l.local("-f", l.manifest("again", always), "--image", ref)
	r.says("attempt 2")
	for _, want := range []string{"ended: the process exited with status 3", "starting again in 1s"} {
		if !strings.Contains(r.stderr.String(), want) {
			t.Errorf("stderr does not say %q:\n%s", want, r.stderr)
		}
	}
	r.interrupt()
	if status := r.end(time.Minute); status != 0 && status != 8 { // it may have ended by itself just then
		t.Errorf("status %d", status)
	}
	once := l.pinnace(l.localArgs("-f", l.manifest("again", always), "--image", ref, "--no-restart", "--json")...)
	if once.status != 8 || strings.Contains(once.stderr, "attempt 2") || !strings.Contains(once.stderr, "error: again failed: the process exited with status 3") {
		t.Errorf("--no-restart: %s", once)
	}
	var kinds []string
	lines := bufio.NewScanner(strings.NewReader(once.stdout))
	for lines.Scan() {
		var e struct {
			Event, Stage, Line string
			End                *struct {
				Kind string
				Code int
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v in %q", err, lines.Text())
		}
		kind := e.Event
		if e.End != nil {
			kind += fmt.Sprintf(" %s %d", e.End.Kind, e.End.Code)
		}
		kinds = append(kinds, strings.TrimSpace(kind+" "+e.Stage+e.Line))
	}
	have := strings.Join(kinds, ", ")
	for _, want := range []string{"resolved", "stage pull", "stage kernel", "log exiting as told, with 3", "end exited 3"} {
		if !strings.Contains(have, want) {
			t.Errorf("--json does not say %q: %s", want, have)
		}
	}
}

// TestLocalRefuses asks for what cannot be had. No machine is started.
func TestLocalRefuses(t *testing.T) {
	l := newRegistryLab(t)
	good := workloadImage(t, "1", nil)
	ref := l.push("app", "v1", good)
	m := l.manifest("app", job("app", ""))
	file, err := good.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	foreign := l.push("app", "other", withConfig(t, good, other, file.Config))
	for name, c := range map[string]struct {
		args   []string
		status int
		words  []string
	}{
		"no kernel":        {[]string{"-f", m, "--image", ref, "--kernels", l.dir}, 2, []string{"kernel", "hint: "}},
		"no QEMU":          {[]string{"-f", m, "--image", ref, "--driver", "qemu", "--qemu", "nosuchqemu"}, 2, []string{"nosuchqemu", "hint: pinnace doctor"}},
		"no image":         {[]string{"-f", m, "--image", l.registry + "/app:none"}, 4, []string{"app:none"}},
		"no registry":      {[]string{"-f", m, "--image", freeAddr(t) + "/app:v1"}, 6, nil},
		"for another CPU":  {[]string{"-f", m, "--image", foreign}, 2, []string{"has nothing for " + runtime.GOARCH, "it has " + other}},
		"manifest for one": {[]string{"-f", l.manifest("other", job("app", `arch = ["`+other+`"]`)), "--image", ref}, 2, []string{"the manifest is for " + other}},
		"a port that is taken": {
			[]string{"-f", l.manifest("port", job("app", "ports.web = { port = 80 }")), "--image", ref, "--publish", "web=" + strings.Split(l.registry, ":")[1]},
			5,
			[]string{"is taken on this machine", "hint: choose another with --publish"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			args := append([]string{"local", "--data-dir", filepath.Join(l.dir, "data"), "--run-dir", filepath.Join(l.dir, "run"), "--accel", "tcg", "--uplink", "none"}, c.args...)
			if !slices.Contains(args, "--kernels") {
				args = append(args, "--kernels", kernels)
			}
			l.refuse(c.status, c.words, args...)
		})
	}
	l.t = t
	if left, _ := filepath.Glob(filepath.Join(l.dir, "run", "local", "*", "*.sock")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	cmd := exec.Command(binary, l.localArgs("-f", "-", "--image", ref)...)
	cmd.Env = l.env
	asNobody(t)(cmd)
	cmd.Stdin = strings.NewReader(job("app", ""))
	text, _ := cmd.CombinedOutput()
	if status := cmd.ProcessState.ExitCode(); status != 3 || !strings.Contains(string(text), "hint: run it with sudo") {
		t.Errorf("not as root: status %d: %s", status, text)
	}
}
