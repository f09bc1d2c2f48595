package agent

import (
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// TestProcessMergesImageAndManifest checks what of an image's config reaches the process, and that the
// manifest wins.
func TestProcessMergesImageAndManifest(t *testing.T) {
	cfg := image.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"cmd"}, WorkingDir: "/image", User: "web", StopSignal: "SIGQUIT",
		Env: []string{"A=image", "B=image", "PINNACE_SECRET=image", "EMPTY="},
	}
	tests := []struct {
		name, manifest            string
		image                     image.Config
		argv, workdir, user, stop string
		env                       []string
	}{
		{"image alone", "", cfg, "/entry cmd", "/image", "web", "SIGQUIT", []string{"A=image", "B=image", "EMPTY="}},
		{"entrypoint clears Cmd", `entrypoint = ["/mine"]`, cfg, "/mine", "/image", "web", "SIGQUIT", nil},
		{"command keeps Entrypoint", `command = ["x", "y"]`, cfg, "/entry x y", "/image", "web", "SIGQUIT", nil},
		{"empty command", `command = []`, cfg, "/entry", "/image", "web", "SIGQUIT", nil},
		{"both", "entrypoint = [\"/mine\"]\ncommand = [\"x\"]", cfg, "/mine x", "/image", "web", "SIGQUIT", nil},
		{
			"the rest", "workdir = \"/m\"\nuser = \"1:2\"\nenv = { B = \"manifest\", C = \"c\" }\nstop = { signal = \"SIGINT\" }", cfg,
			"/entry cmd", "/m", "1:2", "SIGINT",
			[]string{"A=image", "B=manifest", "C=c", "EMPTY="},
		},
		{"shell form", "", image.Config{Cmd: []string{"/bin/sh", "-c", "exec app $PORT"}}, "/bin/sh -c exec app $PORT", "", "", "", nil},
		{
			"shell form of both: Cmd follows, and the shell does not look at it", "",
			image.Config{Entrypoint: []string{"/bin/sh", "-c", "app"}, Cmd: []string{"/bin/sh", "-c", "x"}},
			"/bin/sh -c app /bin/sh -c x", "", "", "", nil,
		},
		{"command instead of a shell form", `command = ["/app", "-v"]`, image.Config{Cmd: []string{"/bin/sh", "-c", "x"}}, "/app -v", "", "", "", nil},
		{"Cmd alone and entrypoint", `entrypoint = ["/app"]`, image.Config{Cmd: []string{"/bin/sh", "-c", "x"}}, "/app", "", "", "", nil},
		{"a stop signal that nobody can act on", "", image.Config{StopSignal: "SIGKILL"}, "", "", "", "", nil},
		{"the same as a number", "", image.Config{StopSignal: "9"}, "", "", "", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, problems := manifest.Parse([]byte("schema = \"v1\"\nname = \"app\"\nresources = { memory = \"128MiB\" }\n" + tt.manifest + "\n"))
			if problems.HasErrors() {
				t.Fatal(problems)
			}
			p := process(m, tt.image, nil)
			if got := strings.Join(append(slices.Clone(p.Entrypoint), p.Cmd...), " "); got != tt.argv {
				t.Errorf("arguments: got %q, want %q", got, tt.argv)
			}
			if p.WorkDir != tt.workdir || p.User != tt.user || p.StopSignal != tt.stop {
				t.Errorf("got %q, %q, %q, want %q, %q, %q", p.WorkDir, p.User, p.StopSignal, tt.workdir, tt.user, tt.stop)
			}
			if tt.env != nil && !slices.Equal(p.Env, tt.env) {
				t.Errorf("environment: got %q, want %q", p.Env, tt.env)
			}
		})
	}
}
