package server

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (p *plane) checkManifest(source string, change ...func(*pb.CheckManifestRequest)) (*pb.CheckManifestResponse, error) {
	req := &pb.CheckManifestRequest{Environment: "dev", Manifest: []byte(source)}
	if m, _ := manifest.Parse([]byte(source)); m != nil {
		req.ManifestHash = string(m.Hash())
	}
	for _, c := range change {
		c(req)
	}
	out, err := p.client.CheckManifest(p.t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return out.Msg, nil
}

func TestCheckManifest(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	room := func(source string, change ...func(*pb.CheckManifestRequest)) string {
		t.Helper()
		got, err := p.checkManifest(source, change...)
		if err != nil {
			t.Fatal(err)
		}
		if got.GetHasRoom() != (got.GetNoRoom() == "") {
			t.Errorf("room and a reason why there is none: %v", got)
		}
		return got.GetNoRoom()
	}
	small, big := text("api", 80, ""), strings.Replace(text("api", 80, ""), "128MiB", "5GiB", 1)
	arm := func(r *pb.CheckManifestRequest) { r.Architectures = []string{"arm64"} }
	both := func(r *pb.CheckManifestRequest) { r.Architectures = []string{"amd64", "arm64"} }

	if got := room(small); !strings.Contains(got, "no host has joined") {
		t.Errorf("without a host: %q", got)
	}
	p.agent("h1") // 4 GiB, amd64
	for _, tt := range []struct {
		name, source, want string
		image              func(*pb.CheckManifestRequest)
	}{
		{"fits", small, "", nil},
		{"fits, with an index", small, "", both},
		{"too big", big, "1 of 1 host lacks memory", nil},
		{"an image for other hosts", small, "another architecture (the release runs on arm64)", arm},
		{"a manifest for other hosts", small + "arch = [\"arm64\"]", "the release runs on arm64", nil},
		{"the manifest takes the architecture of the host out", small + "arch = [\"arm64\"]", "the release runs on arm64", both},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var change []func(*pb.CheckManifestRequest)
			if tt.image != nil {
				change = append(change, tt.image)
			}
			if got := room(strings.Replace(tt.source, "[stop]", "", 1), change...); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	// What runs takes its room.
	half := strings.Replace(text("api", 80, ""), "128MiB", "2GiB", 1)
	if _, d, _ := p.watch(p.deploy("dev", p.release(half, "v1")).GetId()); d.GetState() != "succeeded" {
		t.Fatal(d)
	}
	if got := room(half); !strings.Contains(got, "lacks memory") {
		t.Errorf("beside an instance: %q", got)
	}

	needy := small + `vars = ["B", "A"]` + "\n" + `secrets.db = { env = ["URL"], require = ["URL", "TOKEN"] }`
	got, err := p.checkManifest(needy)
	if err != nil {
		t.Fatal(err)
	}
	want := `["A" "B"] [{db true [TOKEN URL]}] 1`
	if text := describeLack(got); text != want {
		t.Errorf("got %s, want %s", text, want)
	}

	before := p.ledger.log.Head().Seq
	for _, tt := range []struct {
		name   string
		source string
		change func(*pb.CheckManifestRequest)
		code   connect.Code
		part   string
	}{
		{"not valid", "name = 1", func(*pb.CheckManifestRequest) {}, connect.CodeInvalidArgument, "the manifest is not valid: 1:"},
		{"valid for the CLI only", "name = 1", func(r *pb.CheckManifestRequest) { r.ManifestHash, r.ClientVersion = "sha256:1", "v9" }, connect.CodeInvalidArgument, "the CLI (version v9) takes the manifest, and this server (version test) does not"},
		{"another hash", small, func(r *pb.CheckManifestRequest) { r.ManifestHash, r.ClientVersion = "sha256:1", "v9" }, connect.CodeInvalidArgument, `the CLI (version v9) said "sha256:1"`},
		{"a hostile version", small, func(r *pb.CheckManifestRequest) { r.ManifestHash, r.ClientVersion = "", "\x1b[31m" }, connect.CodeInvalidArgument, `the CLI (of an unknown version) said ""`},
		{"no such environment", small, func(r *pb.CheckManifestRequest) { r.Environment = "nosuch" }, connect.CodeNotFound, `"nosuch" does not exist`},
		{"no environment", small, func(r *pb.CheckManifestRequest) { r.Environment = "" }, connect.CodeInvalidArgument, "pass -e"},
		{"too many architectures", small, func(r *pb.CheckManifestRequest) { r.Architectures = make([]string, 17) }, connect.CodeInvalidArgument, "17 architectures"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := p.checkManifest(tt.source, tt.change)
			wantCode(t, err, tt.code, tt.part)
		})
	}
	if after := p.ledger.log.Head().Seq; after != before {
		t.Errorf("checking left %d events", after-before)
	}
}

// An environment with vars and bundles lacks only what it does not have.
func TestSupply(t *testing.T) {
	m, problems := manifest.Parse([]byte(text("api", 80, `vars = ["A", "B"]
secrets.api = { env = ["URL"], require = ["TOKEN"] }
secrets.db = { env = ["PASSWORD"], require = ["PASSWORD"] }
secrets.tls = { path = "/run/tls" }`)))
	if m == nil {
		t.Fatal(problems.Err())
	}
	keys := func(names ...string) map[string]bool {
		set := map[string]bool{}
		for _, n := range names {
			set[n] = true
		}
		return set
	}
	full := supply{vars: keys("A", "B", "C"), bundles: map[string]map[string]bool{"api": keys("URL", "TOKEN", "X"), "db": keys("PASSWORD"), "tls": {}}}
	for _, tt := range []struct {
		name string
		have supply
		want string
	}{
		{"everything", full, `[] [] 0`},
		{"nothing", supply{}, `["A" "B"] [{api true [TOKEN URL]} {db true [PASSWORD]} {tls true []}] 0`},
		{
			"some",
			supply{vars: keys("B"), bundles: map[string]map[string]bool{"api": keys("TOKEN"), "tls": {}, "db": {}}},
			`["A"] [{api false [URL]} {db false [PASSWORD]}] 0`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := describeLack(tt.have.lacks(m)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func describeLack(r *pb.CheckManifestResponse) string {
	var secrets []string
	for _, s := range r.GetMissingSecrets() {
		secrets = append(secrets, fmt.Sprintf("{%s %t %v}", s.GetBundle(), s.GetAbsent(), s.GetKeys()))
	}
	return fmt.Sprintf("%q %v %d", r.GetMissingVars(), secrets, r.GetCount())
}
