package server

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// safe is a plane that keeps secrets, with everything that it leaves behind in one directory, its log too.
type safe struct {
	*plane
	dir  string
	keys *secret.Keys
	said lockedBuffer
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func freshKeys(t *testing.T) *secret.Keys {
	t.Helper()
	text, err := secret.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := secret.ParseKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func newSafe(t *testing.T) *safe {
	s := &safe{dir: t.TempDir(), keys: freshKeys(t)}
	_, logKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.plane = &plane{t: t, hostTimeout: 5 * time.Second, engine: func() eventlog.Engine {
		return sqlite.New(sqlite.Options{Dir: filepath.Join(s.dir, "log")})
	}}
	s.change = func(o *Options) {
		store, err := secret.OpenDir(s.stored())
		if err != nil {
			t.Fatal(err)
		}
		o.Keys, o.Secrets, o.LogKey, o.DerivedDir = s.keys, store, logKey, filepath.Join(s.dir, "derived")
		o.Logger = slog.New(slog.NewJSONHandler(&s.said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s.listen()
	return s
}

func (s *safe) stored() string { return filepath.Join(s.dir, "secrets") }

// sealedFiles are the names of what is in the store.
func (s *safe) sealedFiles() []string {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.stored(), "*.age"))
	if err != nil {
		s.t.Fatal(err)
	}
	return files
}

func values(pairs ...string) map[string][]byte {
	out := map[string][]byte{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = []byte(pairs[i+1])
	}
	return out
}

func (s *safe) put(req *pb.PutSecretRequest) *pb.PutSecretResponse {
	s.t.Helper()
	req.Environment = "dev"
	res, err := s.client.PutSecret(s.t.Context(), connect.NewRequest(req))
	if err != nil {
		s.t.Fatal(err)
	}
	return res.Msg
}

// has waits until an instance was sent exactly these values of a version of a bundle.
func (s *safe) has(a *fakeAgent, instance, bundle string, version uint64, want map[string][]byte) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("%s has version %d of %s", instance, version, bundle), func() bool {
		for _, got := range a.assignment(instance).GetSecrets() {
			if got.GetBundle() == bundle {
				return got.GetVersion() == version && maps.EqualFunc(got.GetValues(), want, bytes.Equal)
			}
		}
		return false
	})
}

func TestSecrets(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	one := s.release(text("api", 80, `secrets.api = { env = ["URL"], require = ["TOKEN"] }`), "v1")
	deploy := &pb.DeployRequest{Environment: "dev", Release: one}
	_, err := s.client.Deploy(t.Context(), connect.NewRequest(deploy))
	wantCode(t, err, connect.CodeFailedPrecondition, `E401 secrets.api`)
	if res := s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("URL", "u1")}); res.GetVersion() != 1 || len(res.GetDeployments()) != 0 {
		t.Errorf("got %v", res)
	}
	_, err = s.client.Deploy(t.Context(), connect.NewRequest(deploy))
	wantCode(t, err, connect.CodeFailedPrecondition, "E402 secrets.api")
	if check, err := s.checkManifest(text("api", 80, `secrets.api = { require = ["TOKEN", "URL"], path = "/s" }`)); err != nil ||
		len(check.GetMissingSecrets()) != 1 || !slices.Equal(check.GetMissingSecrets()[0].GetKeys(), []string{"TOKEN"}) {
		t.Errorf("got %v, %v", check, err)
	}

	// Keys are added to those that are there; the deployment has the version that was the newest.
	s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("TOKEN", "t1")})
	first := s.deploy("dev", one)
	s.watch(first.GetId())
	i := s.serves("dev", one)
	s.has(a, i.GetId(), "api", 2, values("URL", "u1", "TOKEN", "t1"))

	// The same again is nothing, a change is a gated rollout, once however often the request is sent.
	if res := s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("TOKEN", "t1")}); !res.GetUnchanged() || res.GetVersion() != 2 {
		t.Errorf("got %v", res)
	}
	req := &pb.PutSecretRequest{Bundle: "api", Set: values("TOKEN", "t2"), BaseVersion: 2, IdempotencyKey: "k"}
	res := s.put(req)
	if len(res.GetDeployments()) != 1 || res.GetVersion() != 3 {
		t.Fatalf("got %v", res)
	}
	if again := s.put(req); !proto.Equal(again.GetDeployments()[0], res.GetDeployments()[0]) && again.GetDeployments()[0].GetId() != res.GetDeployments()[0].GetId() || again.GetVersion() != 3 {
		t.Errorf("the same again: %v", again)
	}
	story, d, _ := s.watch(res.GetDeployments()[0].GetId())
	second := s.serves("dev", one)
	if d.GetState() != "succeeded" || d.GetKind() != "settings" || second.GetId() == i.GetId() {
		t.Fatalf("got %v\n%s", d, story)
	}
	s.has(a, second.GetId(), "api", 3, values("URL", "u1", "TOKEN", "t2"))
	if unchanged, err := s.client.Deploy(t.Context(), connect.NewRequest(deploy)); err != nil || !unchanged.Msg.GetUnchanged() {
		t.Errorf("deploying what is live: %v, %v", unchanged, err)
	}

	// A rollback takes them as they were, or as they are now; and says so before.
	plan, err := s.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Rollback{Rollback: &pb.RollbackTarget{Deployment: first.GetId()}}}))
	if err != nil || !slices.ContainsFunc(plan.Msg.GetWarnings(), func(w string) bool { return strings.Contains(w, "goes back to version 2") }) {
		t.Errorf("got %v, %v", plan, err)
	}
	if plan != nil && (len(plan.Msg.GetSteps()) == 0 || plan.Msg.GetSteps()[0].GetText() != "version 2 of the secrets api") {
		t.Errorf("got %v", plan.Msg.GetSteps())
	}
	rollback := func(secrets string) (*connect.Response[pb.RollbackResponse], error) {
		return s.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api", Deployment: first.GetId(), Secrets: secrets}))
	}
	_, err = rollback("sometime")
	wantCode(t, err, connect.CodeInvalidArgument, `want "then"`)
	back, err := rollback("")
	if err != nil {
		t.Fatal(err)
	}
	s.watch(back.Msg.GetDeployment().GetId())
	s.has(a, s.serves("dev", one).GetId(), "api", 2, values("URL", "u1", "TOKEN", "t1"))

	// What something runs with cannot be revoked; what was revoked is gone from the disk, and nobody goes back to it.
	revoke := func(versions ...uint64) (*pb.RevokeSecretResponse, error) {
		res, err := s.client.RevokeSecret(t.Context(), connect.NewRequest(&pb.RevokeSecretRequest{Environment: "dev", Bundle: "api", Versions: versions}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	_, err = revoke(2)
	wantCode(t, err, connect.CodeFailedPrecondition, "version 2 of bundle api is what api has")
	_, err = revoke(9)
	wantCode(t, err, connect.CodeNotFound, "no version 9")
	s.watch(s.deploy("dev", one).GetId())
	s.has(a, s.serves("dev", one).GetId(), "api", 3, values("URL", "u1", "TOKEN", "t2"))
	before := len(s.sealedFiles())
	if res, err := revoke(1, 2, 2); err != nil || !slices.Equal(res.GetRevoked(), []uint64{1, 2}) {
		t.Errorf("got %v, %v", res, err)
	}
	if after := len(s.sealedFiles()); before-after != 2 {
		t.Errorf("the store had %d and has %d", before, after)
	}
	if res, err := revoke(1); err != nil || len(res.GetRevoked()) != 0 {
		t.Errorf("once more: %v, %v", res, err)
	}
	_, err = rollback("then")
	wantCode(t, err, connect.CodeFailedPrecondition, "version 2 of secret bundle api of dev was revoked by admin")
	if _, err = rollback("now"); err != nil {
		t.Error(err)
	}

	for _, tt := range []struct {
		req  *pb.PutSecretRequest
		code connect.Code
		want string
	}{
		{&pb.PutSecretRequest{Bundle: "api", Unset: []string{"TOKEN"}}, connect.CodeFailedPrecondition, "api is live in dev and needs TOKEN"},
		{&pb.PutSecretRequest{Bundle: "api", Set: values("A", "a"), Replace: true}, connect.CodeFailedPrecondition, "needs TOKEN, URL"},
		{&pb.PutSecretRequest{Bundle: "api"}, connect.CodeInvalidArgument, "no key was given"},
		{&pb.PutSecretRequest{Bundle: "api", Unset: []string{"B"}}, connect.CodeNotFound, "no key B"},
		{&pb.PutSecretRequest{Bundle: "api", Set: values("A", "a"), Unset: []string{"A"}}, connect.CodeInvalidArgument, "to be set and unset"},
		{&pb.PutSecretRequest{Bundle: "api", Set: values("A", "a"), BaseVersion: 1}, connect.CodeAborted, "has changed since version 1"},
		{&pb.PutSecretRequest{Bundle: "Api", Set: values("A", "a")}, connect.CodeInvalidArgument, "bundle name"},
		{&pb.PutSecretRequest{Bundle: "big", Set: map[string][]byte{"A": make([]byte, 256<<10)}}, connect.CodeInvalidArgument, "262144 are the most"},
		{&pb.PutSecretRequest{Bundle: "keys", Set: values("a/b", "a")}, connect.CodeInvalidArgument, "the key"},
	} {
		tt.req.Environment = "dev"
		_, err := s.client.PutSecret(t.Context(), connect.NewRequest(tt.req))
		wantCode(t, err, tt.code, tt.want)
	}
	if n := len(s.sealedFiles()); n != 1 {
		t.Errorf("%d things are stored, want the one version that is left", n)
	}
}

// TestSecretsInPlace: with signal and none nothing is replaced, and a rollback and a restart have what they should.
func TestSecretsInPlace(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k1")})
	s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("key", "a1")})
	one := s.release(text("api", 80, "secrets.tls = { path = \"/tls\", on_change = \"signal:SIGHUP\" }\nsecrets.api = { path = \"/api\" }"), "v1")
	first := s.deploy("dev", one)
	s.watch(first.GetId())
	i := s.serves("dev", one)
	res := s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k2")})
	if len(res.GetDeployments()) != 1 || res.GetDeployments()[0].GetKind() != "secrets" {
		t.Fatalf("got %v", res)
	}
	s.succeeds(res.GetDeployments()[0])
	s.has(a, i.GetId(), "tls", 2, values("key", "k2"))
	s.has(a, i.GetId(), "api", 1, values("key", "a1"))
	if same := s.serves("dev", one); same.GetId() != i.GetId() || same.GetDeployment() != res.GetDeployments()[0].GetId() {
		t.Errorf("it was %s, and is %s of %s", i.GetId(), same.GetId(), same.GetDeployment())
	}
	if later := s.put(&pb.PutSecretRequest{Bundle: "tls", Set: values("key", "k3"), NoDeploy: true}); !slices.Equal(later.GetPending(), []string{"api"}) || len(later.GetDeployments()) != 0 {
		t.Errorf("got %v", later)
	}
	restart, err := s.client.Restart(t.Context(), connect.NewRequest(&pb.RestartRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	s.watch(restart.Msg.GetDeployment().GetId())
	s.has(a, s.serves("dev", one).GetId(), "tls", 2, values("key", "k2"))
	scaled, err := s.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 2}))
	if err != nil {
		t.Fatal(err)
	}
	s.watch(scaled.Msg.GetDeployment().GetId())
	for _, i := range s.instances("dev", false) {
		s.has(a, i.GetId(), "tls", 2, values("key", "k2"))
	}
	got, err := s.client.GetSecret(t.Context(), connect.NewRequest(&pb.GetSecretRequest{Environment: "dev", Bundle: "tls"}))
	if err != nil || got.Msg.GetBundle().GetNewest().GetVersion() != 3 || len(got.Msg.GetBundle().GetUsers()) != 1 ||
		got.Msg.GetBundle().GetUsers()[0].GetVersion() != 2 || got.Msg.GetBundle().GetUsers()[0].GetOnChange() != "signal:SIGHUP" {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestSecretsOverRestarts: another key, a damaged store and a crash between event and removal.
func TestSecretsOverRestarts(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "one")})
	old := s.sealedFiles()[0]
	sealed, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "two")})
	release := s.release(text("api", 80, `secrets.api = { path = "/s" }`), "v1")
	if _, err := s.client.RevokeSecret(t.Context(), connect.NewRequest(&pb.RevokeSecretRequest{Environment: "dev", Bundle: "api", Versions: []uint64{1}})); err != nil {
		t.Fatal(err)
	}

	// As after a crash: what was revoked is there still, and something that no event names.
	s.kill()
	write := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old, sealed)
	young, orphan := []byte("young"), []byte("orphan")
	name := func(b []byte) string {
		return filepath.Join(s.stored(), strings.TrimPrefix(secret.Digest(b), "sha256:")+".age")
	}
	write(name(young), young)
	write(name(orphan), orphan)
	long := time.Now().Add(-orphanAge - time.Hour)
	if err := os.Chtimes(name(orphan), long, long); err != nil {
		t.Fatal(err)
	}
	s.boot()
	s.eventually("what nobody needs is gone", func() bool { return len(s.sealedFiles()) == 2 })
	if !slices.Contains(s.sealedFiles(), name(young)) {
		t.Error("what may be on its way into an event is gone")
	}
	s.eventually("the host is back", func() bool { on, _ := s.observed.connected("h1", time.Now()); return on })
	s.watch(s.deploy("dev", release).GetId())
	i := s.serves("dev", release)
	s.has(a, i.GetId(), "api", 2, values("KEY", "two"))

	// With another key nothing is opened, and nothing more is sealed; the host is told what it can be told.
	s.kill()
	right := s.keys
	s.keys = freshKeys(t)
	s.boot()
	s.eventually("the host is told without the secret", func() bool {
		asg := a.assignment(i.GetId())
		return asg != nil && len(asg.GetSecrets()) == 0
	})
	_, err = s.client.PutSecret(t.Context(), connect.NewRequest(&pb.PutSecretRequest{Environment: "dev", Bundle: "other", Set: values("A", "a")}))
	wantCode(t, err, connect.CodeFailedPrecondition, "sealed for another key")
	if !strings.Contains(s.said.String(), "sealed for another key") {
		t.Error("the log does not say so")
	}
	s.kill()
	s.keys = right
	s.boot()
	s.has(a, i.GetId(), "api", 2, values("KEY", "two"))

	// What is damaged is not given to anybody, and can be replaced.
	for _, file := range s.sealedFiles() {
		write(file, []byte("damaged"))
	}
	_, err = s.client.PutSecret(t.Context(), connect.NewRequest(&pb.PutSecretRequest{Environment: "dev", Bundle: "api", Set: values("A", "a")}))
	wantCode(t, err, connect.CodeFailedPrecondition, "not those that were stored")
	s.eventually("the host is back", func() bool { on, _ := s.observed.connected("h1", time.Now()); return on })
	res := s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "three"), Replace: true})
	s.watch(res.GetDeployments()[0].GetId())
	s.has(a, s.serves("dev", release).GetId(), "api", 3, values("KEY", "three"))
}

func TestNoStore(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	_, err := p.client.PutSecret(t.Context(), connect.NewRequest(&pb.PutSecretRequest{Environment: "dev", Bundle: "a", Set: values("A", "a")}))
	wantCode(t, err, connect.CodeFailedPrecondition, "keeps no secrets")
	_, err = p.client.LoginRegistry(t.Context(), connect.NewRequest(&pb.LoginRegistryRequest{Registry: "r.example", Username: "u", Password: "p"}))
	wantCode(t, err, connect.CodeFailedPrecondition, "keeps no secrets")
}

// TestLackingIsNoPanic: a host whose secret cannot be opened goes on being told of everything else.
func TestLackingIsNoPanic(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", "one")})
	for _, file := range s.sealedFiles() {
		if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := s.deploy("dev", s.release(text("api", 80, `secrets.api = { path = "/s" }`), "v1"))
	s.watch(first.GetId())
	other := s.release(text("web", 81, ""), "v1")
	s.watch(s.deploy("dev", other).GetId())
	for _, i := range s.instances("dev", false) {
		if asg := a.assignment(i.GetId()); asg == nil || len(asg.GetSecrets()) != 0 {
			t.Errorf("%s: the host was told %v", i.GetId(), asg)
		}
	}
	if !strings.Contains(s.said.String(), "a host does not get what it needs") {
		t.Error("the log does not say so")
	}
}

// TestSecretVersionsAreBounded: whoever never revokes a version is told so in the end.
func TestSecretVersionsAreBounded(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	for n := range fleet.MaxVersions {
		s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("N", fmt.Sprint(n))})
	}
	more := &pb.PutSecretRequest{Environment: "dev", Bundle: "api", Set: values("N", "one more"), IdempotencyKey: "more"}
	_, err := s.client.PutSecret(t.Context(), connect.NewRequest(more))
	wantCode(t, err, connect.CodeResourceExhausted, "256 versions, and no more are kept: revoke")
	if _, err := s.client.RevokeSecret(t.Context(), connect.NewRequest(&pb.RevokeSecretRequest{Environment: "dev", Bundle: "api", Versions: []uint64{1}, IdempotencyKey: "revoke"})); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.PutSecret(t.Context(), connect.NewRequest(more)); err != nil {
		t.Error(err)
	}
}
