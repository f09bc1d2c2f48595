package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// deployersMay are the calls that change something and that a deployer may make. All others that do take an admin: a new
// one does until it is decided otherwise, here and in its rule. It is written down twice on purpose.
var deployersMay = map[protoreflect.Name]bool{
	"SetVars": true, "SetPlacement": true, "CreateRelease": true, "Plan": true, "Deploy": true, "Rollback": true, "Stop": true,
	"Restart": true, "Steer": true, "Scale": true, "Exec": true, "ForwardPort": true, "GrowVolume": true, "SnapshotVolume": true,
	"DeleteSnapshot": true, "ExportVolume": true, "ImportVolume": true, "PutSecret": true,
	"SetRoute": true, "UnsetRoute": true, "StartRun": true, "StopRun": true,
}

// forAll are the calls that take a token for all environments, because they concern all.
var forAll = map[protoreflect.Name]bool{
	"CreateEnvironment": true, "DrainHost": true, "RemoveHost": true, "RevokeHost": true, "CreateJoinToken": true, "SetQuota": true,
	"SignCheckpoint": true,
}

// world is what the requests of the matrix are about: one environment with all that belongs to it.
type world struct {
	environment, app, release, wholeRelease, deployment, instance, host, token string
}

// words are all names of a world, those first that have others in them.
func (w world) words() []string {
	return []string{w.wholeRelease, w.release, w.deployment, w.instance, w.app, w.host, w.token, w.environment}
}

// inhabit makes an environment with an app that serves on a host of its own, and all names have a prefix.
func (p *plane) inhabit(prefix string, port int) world {
	p.t.Helper()
	w := world{environment: prefix + "-env", app: prefix + "-app", host: prefix + "-host"}
	p.environment(w.environment)
	p.agent(w.host, func(f *pb.HostFacts) { f.Labels = map[string]string{"of": prefix} })
	must := func(err error) {
		p.t.Helper()
		if err != nil {
			p.t.Fatal(err)
		}
	}
	_, err := p.client.SetPlacement(p.t.Context(), connect.NewRequest(&pb.SetPlacementRequest{Environment: w.environment, App: w.app, Labels: map[string]string{"of": prefix}}))
	must(err)
	_, err = p.client.SetVars(p.t.Context(), connect.NewRequest(&pb.SetVarsRequest{Environment: w.environment, Set: map[string]string{"A": prefix + "-value"}}))
	must(err)
	w.wholeRelease = p.release(text(w.app, port, `vars = ["A"]`), prefix+"-fate")
	w.release = "rel-" + strings.TrimPrefix(w.wholeRelease, "sha256:")[:12]
	w.deployment = p.deploy(w.environment, w.wholeRelease).GetId()
	p.watch(w.deployment)
	w.instance = p.serves(w.environment, w.wholeRelease).GetId()
	made, err := p.client.CreateToken(p.t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: prefix + "-token", Role: "admin", Environments: []string{w.environment}}))
	must(err)
	w.token = made.Msg.GetToken().GetId()
	return w
}

// absent is a world that is not there, with names of the same lengths.
func absent(w world) world {
	return world{
		environment: "absent-env", app: "absent-app", release: "rel-0123456789ab", wholeRelease: "sha256:" + strings.Repeat("0", 64),
		deployment: "dep-0123456789ab", instance: "absent-app-0123456789ab", host: "absent-host", token: "tok-0123456789ab",
	}
}

// about fills a request with the names of a world, by the names of its fields.
func (w world) about(m protoreflect.Message) {
	values := map[protoreflect.Name]string{
		"environment": w.environment, "app": w.app, "release": w.release, "deployment": w.deployment, "instance": w.instance,
		"host": w.host, "token": w.token, "target": w.app, "name": w.environment, "role": "viewer", "volume": "data", "snapshot": "snap",
		"bundle": "bundle", "registry": "registry.example",
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.Name() == "environments" && f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfString(w.environment))
		case f.Name() == "labels" && f.IsMap(): // an app that moves to a host of the other world sees that host
			prefix, _, _ := strings.Cut(w.environment, "-")
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("of").MapKey(), protoreflect.ValueOfString(prefix))
		case f.Name() == "argv" && f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfString("true"))
		case f.Name() == "start" && f.Message() != nil:
			w.about(m.Mutable(f).Message())
		case f.Kind() == protoreflect.StringKind && !f.IsList() && values[f.Name()] != "":
			m.Set(f, protoreflect.ValueOfString(values[f.Name()]))
		}
	}
}

// requestFor makes the request of a call about a world; about none when that is nil.
func requestFor(t *testing.T, m protoreflect.MethodDescriptor, w *world) []byte {
	t.Helper()
	typ, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	msg := typ.New()
	if w != nil {
		w.about(msg)
	}
	b, err := protojson.Marshal(msg.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// told is what a call answered: its code, "" for none, and everything that was said.
type told struct{ code, text string }

// ask makes a call as JSON, whatever kind it is, with a request of one message.
func (p *plane) ask(m protoreflect.MethodDescriptor, token string, request []byte) told {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	streams := m.IsStreamingClient() || m.IsStreamingServer()
	body, contentType := request, "application/json"
	if streams {
		body = binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
		body, contentType = append(body, request...), "application/connect+json"
	}
	url := fmt.Sprintf("%s/%s/%s", p.api.URL, m.Parent().FullName(), m.Name())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := p.agentSide.Transport.(withToken).next.RoundTrip(r)
	if err != nil {
		p.t.Fatalf("%s: %v", m.Name(), err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatalf("%s: %v", m.Name(), err)
	}
	var answer struct {
		Code  string
		Error struct{ Code string }
	}
	if !streams || res.StatusCode != http.StatusOK {
		_ = json.Unmarshal(b, &answer) // an answer without an error has none of these fields
		if answer.Code == "" && res.StatusCode != http.StatusOK {
			answer.Code = res.Status
		}
		return told{answer.Code, string(b)}
	}
	for rest := b; len(rest) >= 5; {
		n := int(binary.BigEndian.Uint32(rest[1:5]))
		if n > len(rest)-5 {
			break
		}
		if rest[0]&2 != 0 {
			_ = json.Unmarshal(rest[5:5+n], &answer) // as above
		}
		rest = rest[5+n:]
	}
	return told{answer.Error.Code, string(b)}
}

// someone makes a token.
func (p *plane) someone(name string, role fleet.Role, environments ...string) string {
	p.t.Helper()
	res, err := p.client.CreateToken(p.t.Context(), connect.NewRequest(&pb.CreateTokenRequest{
		Name: name, Role: string(role), Environments: environments, AllEnvironments: len(environments) == 0,
	}))
	if err != nil {
		p.t.Fatal(err)
	}
	return res.Msg.GetSecret()
}

// needs is the role that a call takes, by what the description of the API says and by the table above.
func needs(m protoreflect.MethodDescriptor) fleet.Role {
	switch {
	case m.Name() == "ListTokens":
		return fleet.Admin
	case reads(m), m.Name() == "Plan", m.Name() == "SignCheckpoint":
		return fleet.Viewer
	case deployersMay[m.Name()]:
		return fleet.Deployer
	}
	return fleet.Admin
}

// TestAccessMatrix: every call that the API describes × every role × every scope, and tokens that are none. Nothing of an
// environment that a token is not for is in any answer, and a request about it is answered like one about what is not
// there.
func TestAccessMatrix(t *testing.T) {
	p, c := newPlaneWithClock(t)
	own, other := p.inhabit("own", 8001), p.inhabit("canary", 8002)
	gone := absent(other)
	methods := controlMethods(t)
	each := func(do func(m protoreflect.MethodDescriptor)) {
		for i := range methods.Len() {
			do(methods.Get(i))
		}
	}
	cells := 0

	// No token, and what is none.
	expired, err := p.client.CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: "expired", Role: "admin", AllEnvironments: true, ExpiresInSeconds: 60}))
	if err != nil {
		t.Fatal(err)
	}
	c.forward(time.Minute)
	revoked := p.someone("revoked", fleet.Admin)
	if _, err := p.client.RevokeToken(t.Context(), connect.NewRequest(&pb.RevokeTokenRequest{Token: "revoked"})); err != nil {
		t.Fatal(err)
	}
	none := map[string]string{
		"none": "", "garbage": "pnt_" + strings.Repeat("a", 52), "expired": expired.Msg.GetSecret(), "revoked": revoked,
		"a join token": p.joinToken(""), "the hash of the admin's": hashOf(t, adminToken),
	}
	each(func(m protoreflect.MethodDescriptor) {
		for what, token := range none {
			cells++
			if got := p.ask(m, token, requestFor(t, m, &own)); got.code != "unauthenticated" || strings.Contains(got.text, "canary") {
				t.Errorf("%s with %s: got %s %s", m.Name(), what, got.code, got.text)
			}
		}
	})

	roles := []fleet.Role{fleet.Viewer, fleet.Deployer, fleet.Admin}
	scoped, all := map[fleet.Role]string{}, map[fleet.Role]string{}
	for _, role := range roles {
		scoped[role], all[role] = p.someone("scoped-"+string(role), role, own.environment), p.someone("all-"+string(role), role)
	}

	// A token for one environment asks about another, which changes nothing: it could be done in any order.
	for _, role := range roles {
		each(func(m protoreflect.MethodDescriptor) {
			cells += 3
			there, nowhere := p.ask(m, scoped[role], requestFor(t, m, &other)), p.ask(m, scoped[role], requestFor(t, m, &gone))
			there.text, nowhere.text = timeless(rename(there.text, other, gone)), timeless(nowhere.text)
			if there != nowhere {
				t.Errorf("%s as a %s of another environment tells what is there:\n%s %s\nand of what is not:\n%s %s", m.Name(), role, there.code, there.text, nowhere.code, nowhere.text)
			}
			if !reads(m) && there.code == "" {
				t.Errorf("%s as a %s of another environment was done", m.Name(), role)
			}
			if got := p.ask(m, scoped[role], requestFor(t, m, nil)); strings.Contains(got.text, "canary") {
				t.Errorf("%s as a %s of one environment shows another: %s", m.Name(), role, got.text)
			}
		})
	}

	// What a role does not allow is refused in what one sees, and nothing of the rest is in what is allowed. What reads comes
	// first, and admins last: they destroy what this is about.
	for _, reading := range []bool{true, false} {
		for _, role := range roles {
			each(func(m protoreflect.MethodDescriptor) {
				if reads(m) != reading {
					return
				}
				cells += 2
				got := p.ask(m, scoped[role], requestFor(t, m, &own))
				if got.code == "unimplemented" && m.IsStreamingClient() {
					return // it does not even read the request
				}
				allowed := role.Covers(needs(m)) && !forAll[m.Name()]
				// A host is out of sight once nothing of the environment is on it.
				refused := got.code == "permission_denied" || forAll[m.Name()] && got.code == "not_found"
				if allowed == refused || got.code == "unauthenticated" {
					t.Errorf("%s as a %s of the environment: got %s %s", m.Name(), role, got.code, got.text)
				}
				if strings.Contains(got.text, "canary") {
					t.Errorf("%s as a %s of one environment shows another: %s", m.Name(), role, got.text)
				}
				if reading && allowed && got.code == "not_found" && m.Name() != "GetRoute" && !strings.Contains(string(m.Name()), "Secret") {
					t.Errorf("%s as a %s of the environment: got %s", m.Name(), role, got.text)
				}
				if role == fleet.Admin && !reading {
					return // below, once for all
				}
				if got = p.ask(m, all[role], requestFor(t, m, &other)); role.Covers(needs(m)) == (got.code == "permission_denied") {
					t.Errorf("%s as a %s of all environments: got %s %s", m.Name(), role, got.code, got.text)
				}
			})
		}
	}
	each(func(m protoreflect.MethodDescriptor) {
		cells++
		if got := p.ask(m, all[fleet.Admin], requestFor(t, m, &gone)); got.code == "permission_denied" || got.code == "unauthenticated" {
			t.Errorf("%s as the admin of all environments: got %s %s", m.Name(), got.code, got.text)
		}
	})
	t.Logf("%d calls, %d cells", methods.Len(), cells)
	if cells < methods.Len()*len(roles)*4 {
		t.Errorf("only %d cells for %d calls", cells, methods.Len())
	}
}

// timeless leaves out when a token was used last.
func timeless(text string) string { return lastUsed.ReplaceAllString(text, "") }

var lastUsed = regexp.MustCompile(`"lastUsedAt":\s*"[^"]*"`)

// rename puts the names of one world in place of those of another.
func rename(text string, from, to world) string {
	for i, word := range from.words() {
		text = strings.ReplaceAll(text, word, to.words()[i])
	}
	return text
}

func hashOf(t *testing.T, text string) string {
	t.Helper()
	s, _, err := identity.ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s.Hash()
}

// TestFollowingIsFiltered: of what is appended while somebody follows the events, too.
func TestFollowingIsFiltered(t *testing.T) {
	p := newPlane(t)
	own, other := p.inhabit("own", 8001), p.inhabit("canary", 8002)
	viewer := p.clientAs(p.someone("viewer", fleet.Viewer, own.environment))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := viewer.ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []world{other, own} {
		_, err := p.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{Environment: w.environment, Set: map[string]string{"B": "new"}}))
		if err != nil {
			t.Fatal(err)
		}
	}
	types := map[string]bool{}
	for stream.Receive() {
		for _, e := range stream.Msg().GetEvents() {
			types[e.GetType()] = true
			b, err := proto.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte("canary")) || len(e.GetHash()) > 0 || strings.HasPrefix(e.GetType(), "token.") || strings.HasPrefix(e.GetType(), "host.") {
				t.Errorf("a viewer of %s sees %v", own.environment, e)
			}
		}
		if bytes.Contains(stream.Msg().GetEvents()[len(stream.Msg().GetEvents())-1].GetPayload(), []byte(`"B":"new"`)) {
			cancel()
		}
	}
	if connect.CodeOf(stream.Err()) != connect.CodeCanceled {
		t.Errorf("the events ended with %v", stream.Err())
	}
	for _, want := range []string{"environment.created", "release.created", "deployment.started", "instances.planned", "instance.ready", "environment.vars-changed"} {
		if !types[want] {
			t.Errorf("a viewer of %s does not see %s", own.environment, want)
		}
	}
}
