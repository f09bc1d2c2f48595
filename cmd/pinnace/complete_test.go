package main

import (
	"bytes"
	"context"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// oneOfEach is a server that has one thing of each kind.
type oneOfEach struct {
	pinnacev1connect.UnimplementedControlServiceHandler
}

const theRelease = "sha256:0123456789ab0123456789ab0123456789ab0123456789ab0123456789abcdef"

// theNames are what there is of each kind, as it is completed.
var theNames = map[string]string{
	"APP": "the-app", "INSTANCE": "the-app-0123", "RELEASE": "rel-0123456789ab", "ENV": "the-env", "ENVIRONMENT": "the-env", "HOST": "the-host", "DEPLOYMENT": "dep-0123",
}

func (oneOfEach) GetServerInfo(context.Context, *connect.Request[pinnacev1.GetServerInfoRequest]) (*connect.Response[pinnacev1.GetServerInfoResponse], error) {
	return connect.NewResponse(&pinnacev1.GetServerInfoResponse{ClusterId: strings.Repeat("0", 32), HeadHash: make([]byte, 32), SeenHash: make([]byte, 32)}), nil
}

func (oneOfEach) GetStatus(context.Context, *connect.Request[pinnacev1.GetStatusRequest]) (*connect.Response[pinnacev1.GetStatusResponse], error) {
	return connect.NewResponse(&pinnacev1.GetStatusResponse{Apps: []*pinnacev1.AppStatus{{App: theNames["APP"]}}}), nil
}

func (oneOfEach) ListInstances(context.Context, *connect.Request[pinnacev1.ListInstancesRequest]) (*connect.Response[pinnacev1.ListInstancesResponse], error) {
	return connect.NewResponse(&pinnacev1.ListInstancesResponse{Instances: []*pinnacev1.Instance{{Id: theNames["INSTANCE"]}}}), nil
}

func (oneOfEach) ListReleases(context.Context, *connect.Request[pinnacev1.ListReleasesRequest]) (*connect.Response[pinnacev1.ListReleasesResponse], error) {
	return connect.NewResponse(&pinnacev1.ListReleasesResponse{Releases: []*pinnacev1.Release{{Id: theRelease}}}), nil
}

func (oneOfEach) ListEnvironments(context.Context, *connect.Request[pinnacev1.ListEnvironmentsRequest]) (*connect.Response[pinnacev1.ListEnvironmentsResponse], error) {
	return connect.NewResponse(&pinnacev1.ListEnvironmentsResponse{Environments: []*pinnacev1.Environment{{Name: theNames["ENV"]}}}), nil
}

func (oneOfEach) ListHosts(context.Context, *connect.Request[pinnacev1.ListHostsRequest]) (*connect.Response[pinnacev1.ListHostsResponse], error) {
	return connect.NewResponse(&pinnacev1.ListHostsResponse{Hosts: []*pinnacev1.Host{{Id: theNames["HOST"]}}}), nil
}

func (oneOfEach) ListDeployments(context.Context, *connect.Request[pinnacev1.ListDeploymentsRequest]) (*connect.Response[pinnacev1.ListDeploymentsResponse], error) {
	return connect.NewResponse(&pinnacev1.ListDeploymentsResponse{Deployments: []*pinnacev1.Deployment{{Id: theNames["DEPLOYMENT"], Release: theRelease}}}), nil
}

// notOfServer are commands whose words mean something on this machine.
var notOfServer = map[string]string{
	"pinnace kernel use": "RELEASE is that of a kernel",
}

// TestCompletesNames walks all commands: each argument and flag whose usage says that it is the name of something is
// completed with the names that the server has.
func TestCompletesNames(t *testing.T) {
	_, handler := pinnacev1connect.NewControlServiceHandler(oneOfEach{})
	srv := httptest.NewServer(handler)
	defer srv.Close()
	home := t.TempDir()
	complete := func(args ...string) string {
		var out bytes.Buffer
		c := &cli{stdin: strings.NewReader(""), stdout: &out, stderr: new(bytes.Buffer), getenv: func(name string) string {
			return map[string]string{"HOME": home, "PINNACE_SERVER": srv.URL, "PINNACE_ENV": "dev"}[name]
		}}
		if code := c.run(t.Context(), append([]string{"__complete"}, args...)); code != exitOK {
			t.Errorf("complete %q: status %d", args, code)
		}
		return out.String()
	}
	offers := func(words, name string) bool {
		for line := range strings.Lines(words) {
			if word, _, _ := strings.Cut(strings.TrimSpace(line), "\t"); word == name {
				return true
			}
		}
		return false
	}
	checked := map[string]int{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		var before []string
		for _, kinds := range positions(cmd.Use) {
			words := ""
			for _, kind := range kinds {
				if theNames[kind] == "" || notOfServer[cmd.CommandPath()] != "" {
					continue
				}
				if words == "" {
					words = complete(append(append(slices.Clip(path), before...), "")...)
				}
				if !offers(words, theNames[kind]) {
					t.Errorf("%s: behind %q it offers %q, want %s in it", cmd.UseLine(), before, words, theNames[kind])
				}
				checked[kind]++
			}
			before = append(before, "x")
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			word, _ := pflag.UnquoteUsage(f)
			want := theNames[strings.ToUpper(word)]
			if want == "" {
				return
			}
			checked["--"+word]++
			if words := complete(append(slices.Clip(path), "--"+f.Name, "")...); !offers(words, want) {
				t.Errorf("%s --%s offers %q, want %s in it", cmd.CommandPath(), f.Name, words, want)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	root := (&cli{getenv: func(string) string { return "" }}).newRoot()
	walk(root)
	for _, want := range []string{"APP", "INSTANCE", "RELEASE", "HOST", "--app", "--environment", "--deployment"} {
		if checked[want] == 0 {
			t.Errorf("no command takes %s", want)
		}
	}
	if !offers(complete("status", "-e", ""), theNames["ENV"]) {
		t.Error("-e is not completed")
	}
}

func TestPositions(t *testing.T) {
	for use, want := range map[string]string{
		"version":         "",
		"scale APP COUNT": "APP COUNT",
		"deploy [RELEASE | --image REFERENCE [-f FILE]]": "RELEASE",
		"exec [-it] INSTANCE|APP -- COMMAND [ARG...]":    "INSTANCE|APP",
		"promote APP --from ENV --to ENV":                "APP",
		"place [APP [LABEL=VALUE…]]":                     "APP LABEL=VALUE",
		"drain HOST --force":                             "HOST",
	} {
		var got []string
		for _, words := range positions(use) {
			got = append(got, strings.Join(words, "|"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q", use, got, want)
		}
	}
}

// TestCompletionScripts has each shell that is here read its script.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out bytes.Buffer
		c := &cli{stdout: &out, stderr: new(bytes.Buffer), getenv: func(string) string { return "" }}
		if code := c.run(t.Context(), []string{"completion", shell}); code != exitOK || !strings.Contains(out.String(), "__complete") {
			t.Errorf("%s: status %d, %d bytes", shell, code, out.Len())
		}
		program, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not here: its script was not read", shell)
			continue
		}
		cmd := exec.CommandContext(t.Context(), program, "-n")
		cmd.Stdin = &out
		if text, err := cmd.CombinedOutput(); err != nil || len(text) > 0 {
			t.Errorf("%s: %v: %s", shell, err, text)
		}
	}
}
