package agent

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/guest/secrettest"
)

const canary = "c4nary-Of-the-agent"

// secret is a bundle with one key.
func secret(bundle string, version uint64, value string) *pinnacev1.AssignedSecret {
	return &pinnacev1.AssignedSecret{Bundle: bundle, Version: version, Values: map[string][]byte{"KEY": []byte(value)}}
}

func with(secrets ...*pinnacev1.AssignedSecret) func(*pinnacev1.Assignment) {
	return func(a *pinnacev1.Assignment) { a.Secrets = secrets }
}

// awaitVersions waits until the workload is reported to have versions of its secrets, and nothing else.
func (l *lab) awaitVersions(instance string, want map[string]uint64) {
	l.t.Helper()
	l.eventually(instance+" has other secrets", func() bool {
		all := l.server.reports[instance]
		return len(all) > 0 && all[len(all)-1].State == stateReady && maps.Equal(all[len(all)-1].SecretVersions, want)
	})
}

func (l *lab) wantNoCanary() {
	l.t.Helper()
	found, err := secrettest.For(canary).Below(l.dir)
	if err != nil || len(found) > 0 {
		l.t.Errorf("secrets are in %v, %v", found, err)
	}
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	for _, all := range l.server.reports {
		for _, r := range all {
			text, err := protojson.Marshal(r)
			if err != nil {
				l.t.Fatal(err)
			}
			if found, _ := secrettest.For(canary).In(strings.NewReader(string(text))); len(found) > 0 {
				l.t.Errorf("secrets are in a report: %s", text)
			}
		}
	}
}

// updates is a guest that notes which bundles came while its process ran.
type updates struct {
	mu  sync.Mutex
	all []guest.Bundle
}

func (u *updates) take(b guest.Bundle) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.all = append(u.all, b)
	if string(b.Values["KEY"]) == "bad" {
		return "no room for it"
	}
	return ""
}

func (u *updates) named(bundle string) []guest.Bundle {
	u.mu.Lock()
	defer u.mu.Unlock()
	var found []guest.Bundle
	for _, b := range u.all {
		if b.Name == bundle {
			found = append(found, b)
		}
	}
	return found
}

// TestSecrets: a workload is started with the newest versions of its bundles, gets further ones as the manifest says,
// and nothing of it is anywhere but in the guest, whoever the agent is.
func TestSecrets(t *testing.T) {
	l := newLab(t)
	starts, u := make(chan *guesttest.Process, 8), &updates{}
	l.runs("api", playing(guesttest.Workload{Bundle: u.take, Run: func(ctx context.Context, p *guesttest.Process) int {
		starts <- p
		<-ctx.Done()
		return 0
	}}))
	l.start()
	rel := l.app("api", atOnceReady,
		"[secrets.signalled]", "path = \"/run/s\"", "format = \"json\"", "mode = \"0440\"", "owner = \"1:2\"", "on_change = \"signal:SIGHUP\"", "require = [\"KEY\"]",
		"[secrets.quiet]", "env = [\"KEY\"]", "on_change = \"none\"",
		"[secrets.rolled]", "path = \"/run/r\"")
	l.assign("dev", "api-1", rel, with(secret("signalled", 1, canary), secret("quiet", 1, canary), secret("rolled", 1, canary)))
	l.awaitVersions("api-1", map[string]uint64{"signalled": 1, "quiet": 1, "rolled": 1})
	p := <-starts
	if len(p.Config.Secrets) != 3 || p.Config.Secrets[2].Bundle != "signalled" || p.Config.Secrets[2].Mode != 0o440 || p.Config.Secrets[2].Owner != "1:2" ||
		p.Config.Secrets[2].Format != guest.FormatJSON || p.Config.Secrets[0].Env[0] != "KEY" {
		t.Errorf("the guest has %+v", p.Config.Secrets)
	}
	for _, s := range p.Config.Secrets {
		if b := p.Bundles[s.Bundle]; b.Version != 1 || string(b.Values["KEY"]) != canary || b.Signal != "" {
			t.Errorf("bundle %s: version %d, signal %q", s.Bundle, b.Version, b.Signal)
		}
	}
	l.wantNoCanary()
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Cur != 0 {
		t.Errorf("the agent may leave a core: %+v, %v", core, err)
	}

	// Of what changes together, the workload gets what the manifest says.
	l.change("api-1", with(secret("signalled", 2, canary+"2"), secret("quiet", 2, canary+"2"), secret("rolled", 2, canary+"2")))
	l.awaitVersions("api-1", map[string]uint64{"signalled": 2, "quiet": 1, "rolled": 1})
	if got := u.named("signalled"); len(got) != 1 || got[0].Signal != "SIGHUP" || string(got[0].Values["KEY"]) != canary+"2" {
		t.Errorf("the workload got %v", got)
	}

	// The next agent knows what is in place, and brings what has changed meanwhile.
	l.leave()
	l.forgetReports()
	l.change("api-1", with(secret("signalled", 3, canary), secret("quiet", 3, canary), secret("rolled", 3, canary)))
	l.start()
	l.awaitVersions("api-1", map[string]uint64{"signalled": 3, "quiet": 1, "rolled": 1})
	if got := u.named("signalled"); len(got) != 2 {
		t.Errorf("the workload got %v", got)
	}
	l.change("api-1", with(secret("signalled", 4, "bad"), secret("quiet", 3, canary), secret("rolled", 3, canary)))
	l.await("api-1", "says what is wrong with its secrets", func(r *pinnacev1.InstanceReport) bool {
		return r.SecretVersions["signalled"] == 3 && strings.Contains(r.Message, "no room for it")
	})
	l.change("api-1", with(secret("signalled", 5, canary), secret("quiet", 3, canary), secret("rolled", 3, canary)))
	l.awaitVersions("api-1", map[string]uint64{"signalled": 5, "quiet": 1, "rolled": 1})

	// A restart brings everything.
	l.driver.Kill("api-1.1")
	l.await("api-1", "runs again", func(r *pinnacev1.InstanceReport) bool {
		return r.Attempt == 2 && r.State == stateReady && maps.Equal(r.SecretVersions, map[string]uint64{"signalled": 5, "quiet": 3, "rolled": 3})
	})
	if n := len(u.named("quiet")) + len(u.named("rolled")); n != 0 {
		t.Errorf("the workload got %d versions that it should not have", n)
	}
	l.wantNoCanary()
}

// TestSecretsWithoutServer: an instance that has to be started again while the server is away is started with what the
// agent before has sealed, where there is memory and a key for that; elsewhere it waits for the server, and says so.
func TestSecretsWithoutServer(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "pinnace-test-") //nolint:usetesting // which is on a disk
	if err != nil {
		t.Skip("needs memory at /dev/shm: ", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(memory); err != nil {
			t.Error(err)
		}
	})
	for _, sealed := range []bool{true, false} {
		t.Run(map[bool]string{true: "sealed", false: "not sealed"}[sealed], func(t *testing.T) {
			l := newLab(t)
			if sealed {
				needKeyring(t, keyName(memory))
				l.runDir = memory
			}
			starts := make(chan *guesttest.Process, 8)
			l.runs("api", playing(guesttest.Workload{Run: func(ctx context.Context, p *guesttest.Process) int {
				starts <- p
				<-ctx.Done()
				return 0
			}}))
			l.start()
			l.assign("dev", "api-1", l.app("api", atOnceReady, "[secrets.api]", "path = \"/run/s\""), with(secret("api", 7, canary)))
			l.awaitVersions("api-1", map[string]uint64{"api": 7})
			<-starts
			l.server.leave()
			l.next()
			l.poll("the agent calls the server", func() bool { return l.server.refused.Load() > 3 })
			l.driver.Kill("api-1.1")
			if !sealed {
				l.poll("it waits", func() bool {
					l.agent.mu.Lock()
					defer l.agent.mu.Unlock()
					return strings.Contains(l.agent.instances["api-1"].report().Message, "waiting for the server to send the secrets: api")
				})
				l.server.comeBack()
			}
			if b := (<-starts).Bundles["api"]; b.Version != 7 || string(b.Values["KEY"]) != canary {
				t.Errorf("it was started again with version %d", b.Version)
			}
			l.server.comeBack()
			l.awaitVersions("api-1", map[string]uint64{"api": 7})
			l.wantNoCanary()
			if sealed {
				if found, err := secrettest.For(canary).Below(memory); err != nil || len(found) > 0 {
					t.Errorf("secrets are in %v, %v", found, err)
				}
			}
			l.stop("api-1")
			l.awaitEnd("api-1")
			l.take("api-1")
			l.poll("nothing is kept", func() bool {
				left, err := filepath.Glob(filepath.Join(l.agent.vault.dir, "*"))
				return err == nil && len(left) == 0
			})
		})
	}
}

// needKeyring skips the test where there is no keyring, and removes the key of that name after the test: a user may have
// so many only.
func needKeyring(t *testing.T, name string) {
	t.Helper()
	if _, err := keyringKey(name); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", name, 0)
		if err == nil {
			_, err = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_KEYRING, 0, 0)
		}
		if err != nil {
			t.Errorf("remove key %s: %v", name, err)
		}
	})
}

func TestSecretsThatCannotBe(t *testing.T) {
	l := newLab(t)
	l.start()
	rel := l.app("api", "restart = \"never\"", "[secrets.api]", "path = \"/run/s\"", "require = [\"OTHER\"]")
	for id, tc := range map[string]struct {
		secrets       []*pinnacev1.AssignedSecret
		stage, detail string
	}{
		"api-1": {[]*pinnacev1.AssignedSecret{secret("api", 1, "x")}, "init", "version 1 of the secrets api has no key OTHER"},
		"api-2": {[]*pinnacev1.AssignedSecret{secret("api", 1, "x"), secret("api", 2, "y")}, "assignment", "sent twice"},
		"api-3": {[]*pinnacev1.AssignedSecret{{Bundle: "api", Values: map[string][]byte{"../x": nil}}}, "assignment", "cannot be the key"},
		"api-4": {[]*pinnacev1.AssignedSecret{secret("api", 1, strings.Repeat("x", guest.MaxBundleBytes))}, "assignment", "are allowed"},
	} {
		l.assign("dev", id, rel, with(tc.secrets...))
		if end := l.awaitEnd(id).End; end.Kind != causeStartFailed || end.Stage != tc.stage || !strings.Contains(end.Detail, tc.detail) {
			t.Errorf("%s: %v", id, end)
		}
	}
}

func TestVault(t *testing.T) {
	key := []byte(strings.Repeat("k", keyBytes))
	v := &vault{dir: filepath.Join(t.TempDir(), "vault"), key: func() ([]byte, error) { return key, nil }, in: func(string) bool { return true }}
	if got, err := v.get("api-1"); got != nil || err != nil {
		t.Errorf("from nothing: %v, %v", got, err)
	}
	want := []*pinnacev1.AssignedSecret{secret("a", 1, canary), secret("b", 2, canary)}
	for range 2 {
		if err := v.put("api-1", want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := v.get("api-1")
	if err != nil || len(got) != 2 || !proto.Equal(got[0], want[0]) || !proto.Equal(got[1], want[1]) {
		t.Errorf("got %v, %v", got, err)
	}
	if found, err := secrettest.For(canary).Below(v.dir); err != nil || len(found) > 0 {
		t.Errorf("secrets are in %v, %v", found, err)
	}
	sealed, err := os.ReadFile(v.path("api-1"))
	if err != nil {
		t.Fatal(err)
	}
	for at := range sealed {
		changed := append([]byte(nil), sealed...)
		changed[at] ^= 1
		if err := os.WriteFile(v.path("api-1"), changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := v.get("api-1"); err == nil {
			t.Fatalf("with byte %d changed: %v", at, got)
		}
	}
	for _, n := range []int{0, 5, len(sealed) - 1} {
		if err := os.WriteFile(v.path("api-1"), sealed[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := v.get("api-1"); err == nil {
			t.Errorf("with %d bytes: %v", n, got)
		}
	}
	if err := os.WriteFile(v.path("api-2"), sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := v.get("api-2"); err == nil {
		t.Errorf("another's: %v", got)
	}
	if err := v.put("api-1", nil); err != nil {
		t.Fatal(err)
	}
	if err := v.removeIf(func(id string) bool { return id == "api-2" }); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(v.dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	v.in = func(string) bool { return false }
	if err := v.put("api-1", want); !errors.Is(err, errNoVault) {
		t.Errorf("on a disk: %v", err)
	}
	v.in, v.key = func(string) bool { return true }, func() ([]byte, error) { return nil, errors.New("no keyring") }
	if err := v.put("api-1", want); !errors.Is(err, errNoVault) || !strings.Contains(err.Error(), "no keyring") {
		t.Errorf("without a key: %v", err)
	}
	if left, err := os.ReadDir(v.dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// TestKeyringKey: every process of this user has the same key, and another name has another.
func TestKeyringKey(t *testing.T) {
	needKeyring(t, "pinnace-test")
	needKeyring(t, "pinnace-test-other")
	one, err := keyringKey("pinnace-test")
	if err != nil {
		t.Fatal(err)
	}
	again, err := keyringKey("pinnace-test")
	if err != nil || string(again) != string(one) || len(one) != keyBytes {
		t.Errorf("%d bytes, then %d, %v", len(one), len(again), err)
	}
	other, err := keyringKey("pinnace-test-other")
	if err != nil || string(other) == string(one) {
		t.Errorf("another name has the same key, or none: %v", err)
	}
}
