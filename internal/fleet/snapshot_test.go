package fleet

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"reflect"
	"testing"
)

// told is a state with records of all kinds in it.
func told(t *testing.T) *State {
	l := newTeller(t)
	one, two := testRelease(t, "api", "80", 1), testRelease(t, "api", "80", 2)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, one, two, deploy("dep-1", one, ""))
	l.tell(&InstancesPlanned{Deployment: "dep-1", Start: []PlannedStart{{Instance: "api-1", Host: testHost.Host, Deployment: "dep-1", Release: one.Release}}})
	l.tell(&InstanceStarted{Instance: "api-1", Attempt: 1}, &InstanceReady{Instance: "api-1", Attempt: 1}, &DeploymentFinished{Deployment: "dep-1", Outcome: Succeeded})
	l.tell(deploy("dep-2", two, "dep-1"))
	return l.state
}

func TestSnapshot(t *testing.T) {
	s := told(t)
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.Hash() != s.Hash() || got.Seq() != s.Seq() || len(got.ActiveDeployments()) != 1 {
		t.Errorf("got a state of event %d with another hash or without its active deployment", got.Seq())
	}
	if r := got.Release(got.Deployment("dep-1").Release); r == nil || r.Manifest == nil {
		t.Error("the release has lost its manifest")
	}
	// It goes on as the other one does.
	next := Event{Seq: s.Seq() + 1, Type: "environment.created", TypeVersion: 1, Payload: []byte(`{"name":"more"}`)}
	if err := got.Apply(next); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(next); err != nil || got.Hash() != s.Hash() {
		t.Errorf("after one more event the states differ, %v", err)
	}
	for _, bad := range [][]byte{nil, []byte("{}"), b[:len(b)-1], bytes.Replace(b, []byte(`"Count":1`), []byte(`"Count":2`), 1)} {
		if _, err := DecodeState(bad); err == nil {
			t.Errorf("decoded %.40q", bad)
		}
	}
}

// TestStateVersion: the state's hash is in signed checkpoints and is compared by later servers. When this fails
// because records were changed, raise StateVersion and put the new hash here. A fold that puts other values into
// the same fields needs a new version too, which no test can see.
func TestStateVersion(t *testing.T) {
	const version, want = 12, "e187b5285ceb500562010c9fff7e7de3f83d492e7f5c794c8293a208e2510bb5"
	h := sha256.New()
	for _, record := range []any{Environment{}, App{}, Host{}, Booking{}, Release{}, Platform{}, Deployment{}, Instance{}, Booted{}, End{}, Cause{}, Bundle{}, BundleVersion{}, RegistryLogin{}, Past{}, Route{}, Volume{}, Snapshot{}, Quota{}, Token{}, Join{}, Admission{}, Run{}} {
		fmt.Fprintf(h, "%T", record)
		for f := range reflect.TypeOf(record).Fields() {
			fmt.Fprintf(h, " %s %s %s", f.Name, f.Type, f.Tag)
		}
	}
	l := newTeller(t)
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost)
	fmt.Fprintf(h, "%x", l.state.Hash())
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != want || StateVersion != version {
		t.Errorf("version %d of the state has the hash %s; version %d had %s", StateVersion, got, version, want)
	}
}
