package server

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/guest/secrettest"
)

// TestSecretsAreNowhere puts canaries and looks for them in everything that the server leaves and says.
func TestSecretsAreNowhere(t *testing.T) {
	const canary, password = "canary/Zq7+secret value \"x\" 49152", "canary-password_8%Kx"
	s := newSafe(t)
	s.environment("dev")
	s.environment("prod")
	a := s.agent("h1")
	var answers bytes.Buffer
	keep := func(m proto.Message, err error) {
		t.Helper()
		if err != nil {
			answers.WriteString(err.Error())
			return
		}
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		answers.Write(b)
	}
	ctx := t.Context()
	keep(s.put(&pb.PutSecretRequest{Bundle: "api", Set: values("KEY", canary, "OTHER", "x"), IdempotencyKey: "k"}), nil)
	one := s.release(text("api", 80, `secrets.api = { env = ["KEY"], path = "/s" }`), "v1")
	login, err := s.client.LoginRegistry(ctx, connect.NewRequest(&pb.LoginRegistryRequest{Environment: "dev", Registry: "127.0.0.1:5000", Username: "robot", Password: password}))
	if err != nil {
		t.Fatal(err)
	}
	keep(login.Msg, nil)
	s.watch(s.deploy("dev", one).GetId())
	i := s.serves("dev", one)
	s.has(a, i.GetId(), "api", 1, values("KEY", canary, "OTHER", "x"))
	if logins := a.assignment(i.GetId()).GetLogins(); len(logins) != 1 || string(logins[0].GetPassword()) != password || logins[0].GetUsername() != "robot" {
		t.Errorf("the host pulls with %d logins", len(logins))
	}
	// Requests that are refused, with the values in them.
	refused := func(_ *connect.Response[pb.PutSecretResponse], err error) {
		t.Helper()
		if err == nil {
			t.Error("not refused")
		}
		keep(nil, err)
	}
	refused(s.client.PutSecret(ctx, connect.NewRequest(&pb.PutSecretRequest{Environment: "dev", Bundle: "api", Set: values("a b", canary)})))
	refused(s.client.PutSecret(ctx, connect.NewRequest(&pb.PutSecretRequest{Environment: "dev", Bundle: "api", Set: values("A", canary), Replace: true})))
	refused(s.client.PutSecret(ctx, connect.NewRequest(&pb.PutSecretRequest{Environment: "none", Bundle: "api", Set: values("A", canary)})))
	_, err = s.client.LoginRegistry(ctx, connect.NewRequest(&pb.LoginRegistryRequest{Registry: "r.example", Username: "a", Password: password + "\n"}))
	keep(nil, err)
	_, err = s.client.LoginRegistry(ctx, connect.NewRequest(&pb.LoginRegistryRequest{Registry: "https://r.example", Username: "a", Password: password}))
	keep(nil, err)
	for _, ask := range []func() (proto.Message, error){
		func() (proto.Message, error) {
			return message(s.client.ListSecrets(ctx, connect.NewRequest(&pb.ListSecretsRequest{Environment: "dev"})))
		},
		func() (proto.Message, error) {
			return message(s.client.GetSecret(ctx, connect.NewRequest(&pb.GetSecretRequest{Environment: "dev", Bundle: "api"})))
		},
		func() (proto.Message, error) {
			return message(s.client.ListRegistryLogins(ctx, connect.NewRequest(&pb.ListRegistryLoginsRequest{})))
		},
		func() (proto.Message, error) {
			return message(s.client.GetStatus(ctx, connect.NewRequest(&pb.GetStatusRequest{Environment: "dev"})))
		},
		func() (proto.Message, error) {
			return message(s.client.ListInstances(ctx, connect.NewRequest(&pb.ListInstancesRequest{Environment: "dev", All: true})))
		},
		func() (proto.Message, error) {
			return message(s.client.Plan(ctx, connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: one}})))
		},
	} {
		m, err := ask()
		if err != nil {
			t.Error(err)
		}
		keep(m, err)
	}
	if !strings.Contains(answers.String(), `"KEY"`) || !strings.Contains(answers.String(), "robot") {
		t.Errorf("the answers do not tell of keys and users:\n%s", answers.String())
	}
	s.kill()
	var export bytes.Buffer
	s.exported(&export)
	if !strings.Contains(export.String(), "secret.put") {
		t.Errorf("the export has no event of a secret:\n%s", export.String())
	}
	for _, text := range []string{canary, password} {
		finder := secrettest.For(text)
		found, err := finder.Below(s.dir)
		if err != nil || len(found) > 0 {
			t.Errorf("on disk: %v, %v", found, err)
		}
		for where, what := range map[string]string{"answers": answers.String(), "log": s.said.String(), "export": export.String()} {
			if forms, err := finder.In(strings.NewReader(what)); err != nil || len(forms) > 0 {
				t.Errorf("in the %s: %v, %v", where, forms, err)
			}
		}
	}

	// The finder finds: a file with the value in it would have been noticed.
	if err := os.WriteFile(filepath.Join(s.dir, "leak"), []byte("x "+canary), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := secrettest.For(canary).Below(s.dir); err != nil || len(found) == 0 {
		t.Errorf("a leak was not found: %v, %v", found, err)
	}
}

func message[M any, P interface {
	*M
	proto.Message
}](res *connect.Response[M], err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return P(res.Msg), nil
}

// exported writes what `audit export` does of a server that does not run.
func (s *safe) exported(w *bytes.Buffer) {
	s.t.Helper()
	ctx := context.Background()
	e := s.engine()
	info, err := e.Open(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	check, err := e.LastCheckpoint(ctx)
	if err == nil {
		head, verifyErr := eventlog.Verify(ctx, eventlog.Stored(ctx, e), eventlog.Genesis(info.ID))
		if err = verifyErr; check.Seq != head.Seq {
			check = eventlog.Checkpoint{Seq: head.Seq, Hash: head.Hash}
		}
	}
	if err == nil {
		err = eventlog.Export(w, info.ID, check, eventlog.Stored(ctx, e))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		s.t.Error(err)
	}
}
