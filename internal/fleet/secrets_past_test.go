package fleet

import (
	"errors"
	"testing"
)

// TestSecretVersionsNeverRepeat: what was version 1 in an environment that is gone is not what the next environment of the
// name has under any number.
func TestSecretVersionsNeverRepeat(t *testing.T) {
	l := newTeller(t)
	api := testRelease(t, "api", "80", 1, `secrets.api = { env = ["A"] }`, "")
	l.tell(&EnvironmentCreated{Name: "dev"}, &EnvironmentCreated{Name: "prod"}, testHost, api)
	next := func(bundle string) *SecretPut {
		p := l.state.NextSecret("dev", bundle)
		p.Keys, p.Sealed, p.Recipient = []string{"A"}, sealedAs('a'), "age1x"
		return p
	}
	for _, bundle := range []string{"api", "api", "api", "tls"} {
		l.tell(next(bundle))
	}
	l.tell(withSecrets(deploy("dep-1", api, ""), KindDeploy, 2), succeeded("dep-1"))
	l.tell(&EnvironmentDestroyed{Environment: "dev"}, &EnvironmentCreated{Name: "dev"})

	if p := next("tls"); p.Version != 4 || p.After != 3 {
		t.Errorf("the next one is %+v", p)
	}
	wrong := next("api")
	wrong.After, wrong.Version = 2, 3
	if err := l.refused(wrong, "the last one was 3"); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	wrong = next("api")
	wrong.Version = 1
	l.refused(wrong, "the next one is 4")
	l.tell(next("api"))
	l.tell(next("api"))
	again := next("api")
	again.After = 3
	l.refused(again, "is not its first")

	b := l.state.Bundle("dev", "api")
	if len(b.Versions) != 2 || b.Version(3) != nil || b.Version(1) != nil || b.Version(4).Version != 4 || b.Version(6) != nil || b.Newest().Version != 5 {
		t.Errorf("got %+v", b)
	}
	l.refused(withSecrets(deploy("dep-2", api, ""), KindDeploy, 2), "version 2 of secret bundle api of dev: not found")
	l.tell(withSecrets(deploy("dep-2", api, ""), KindDeploy, 4), succeeded("dep-2"), &SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{5}})
	if p := l.state.NextSecret("prod", "api"); p.Version != 1 || p.After != 0 {
		t.Errorf("the first one elsewhere is %+v", p)
	}

	// One more time, and by way of a copy of the state.
	l.tell(&EnvironmentDestroyed{Environment: "dev"}, &EnvironmentCreated{Name: "dev"})
	copied, err := l.state.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := DecodeState(copied)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{l.state, read, l.state.Clone()} {
		if p := s.NextSecret("dev", "new"); p.Version != 6 {
			t.Errorf("the next one is %+v", p)
		}
	}
}

// TestSecretsOfOldLogs: a log in which versions began at 1 again is read as it was meant.
func TestSecretsOfOldLogs(t *testing.T) {
	l := newTeller(t)
	l.tell(&EnvironmentCreated{Name: "dev"}, put("api", 1, "A"), put("api", 2, "A"))
	l.tell(&EnvironmentDestroyed{Environment: "dev"}, &EnvironmentCreated{Name: "dev"}, put("api", 1, "B"), put("api", 2, "B"))
	if b := l.state.Bundle("dev", "api"); !b.Version(1).Has("B") || b.Newest().Version != 2 {
		t.Errorf("got %+v", b)
	}
	if p := l.state.NextSecret("dev", "api"); p.Version != 3 || p.After != 0 {
		t.Errorf("the next one is %+v", p)
	}
	if p := l.state.NextSecret("dev", "other"); p.Version != 3 || p.After != 2 {
		t.Errorf("the first one of another is %+v", p)
	}
}
