package server

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/pinnacehq/pinnace/internal/api/openapi"
	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// controlMethods are the calls that people and their scripts make.
func controlMethods(t *testing.T) protoreflect.MethodDescriptors {
	t.Helper()
	return pb.File_pinnace_v1_control_proto.Services().ByName("ControlService").Methods()
}

func reads(m protoreflect.MethodDescriptor) bool {
	return m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

// keyless are calls that take no idempotency key although they do something, and why.
var keyless = map[protoreflect.Name]string{
	"ForwardPort": "each call is a connection of its own, as each dial is",
}

// TestEveryWriteTakesAKey: what is not marked as a call without side effects can be made again, because its answer was
// lost, without being done twice.
func TestEveryWriteTakesAKey(t *testing.T) {
	writes := 0
	for i := range controlMethods(t).Len() {
		m := controlMethods(t).Get(i)
		if m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN {
			if key := m.Input().Fields().ByName("idempotency_key"); key != nil {
				t.Errorf("%s says that it may be called again, and takes an idempotency key", m.Name())
			}
			continue
		}
		if keyless[m.Name()] != "" {
			continue
		}
		writes++
		input := m.Input()
		if m.IsStreamingClient() { // the first message says what is to be done
			input = input.Fields().ByName("start").Message()
		}
		if key := input.Fields().ByName("idempotency_key"); key == nil || key.Kind() != protoreflect.StringKind {
			t.Errorf("%s changes something, and takes no idempotency_key; mark it NO_SIDE_EFFECTS when it does not", m.Name())
		}
		for _, verb := range []string{"Get", "List", "Watch", "Read", "Stream", "Check"} {
			if strings.HasPrefix(string(m.Name()), verb) {
				t.Errorf("%s is called like something that only reads, and is not marked so", m.Name())
			}
		}
	}
	if writes == 0 {
		t.Error("no call changes anything")
	}
}

// TestEveryListHasPages: a list grows, and an answer does not.
func TestEveryListHasPages(t *testing.T) {
	for i := range controlMethods(t).Len() {
		m := controlMethods(t).Get(i)
		if !strings.HasPrefix(string(m.Name()), "List") && m.Name() != "GetStatus" {
			continue
		}
		if !reads(m) {
			t.Errorf("%s is not marked NO_SIDE_EFFECTS", m.Name())
		}
		in, out := m.Input().Fields(), m.Output().Fields()
		if in.ByName("page_size") == nil || in.ByName("page_token") == nil || out.ByName("next_page_token") == nil {
			t.Errorf("%s lacks page_size, page_token or next_page_token", m.Name())
		}
	}
}

// TestEveryWatchResumes: what a caller follows can be taken up where it broke.
func TestEveryWatchResumes(t *testing.T) {
	for i := range controlMethods(t).Len() {
		m := controlMethods(t).Get(i)
		follows := false
		for _, verb := range []string{"Watch", "Read", "Stream", "Follow", "Tail"} {
			follows = follows || strings.HasPrefix(string(m.Name()), verb)
		}
		if follows && (!m.IsStreamingServer() || !reads(m) || m.Input().Fields().ByName("after") == nil) {
			t.Errorf("%s is not a stream that only reads and that begins where the request says", m.Name())
		}
	}
}

// call makes a request as curl does, and returns the status and what the answer says as JSON.
func (p *plane) call(method, path, token, contentType, body string) (status int, answer map[string]any) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.api.URL+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(b, &answer); err != nil {
			p.t.Errorf("%s %s: %v: %s", method, path, err, b)
		}
	}
	return res.StatusCode, answer
}

// TestPlainHTTP speaks to the server without any library: JSON in a POST over HTTP/1.1, and GET for what only reads.
func TestPlainHTTP(t *testing.T) {
	p := newPlane(t)
	const service, asJSON = "/pinnace.v1.ControlService/", "application/json"
	if status, got := p.call("POST", service+"CreateEnvironment", adminToken, asJSON, `{"name":"dev","idempotencyKey":"k"}`); status != 200 || got["environment"] == nil {
		t.Errorf("create: %d, %v", status, got)
	}
	// Names as the API description has them do as well, and what is unknown is ignored.
	if status, got := p.call("POST", service+"CreateEnvironment", adminToken, asJSON, `{"name":"dev","idempotency_key":"k","of_tomorrow":1}`); status != 200 || got["environment"] == nil {
		t.Errorf("create again: %d, %v", status, got)
	}
	list := func(status int, got map[string]any) {
		t.Helper()
		envs, _ := got["environments"].([]any)
		if status != 200 || len(envs) != 1 || envs[0].(map[string]any)["name"] != "dev" {
			t.Errorf("list: %d, %v", status, got)
		}
	}
	list(p.call("POST", service+"ListEnvironments", adminToken, asJSON, `{}`))
	list(p.call("GET", service+"ListEnvironments?encoding=json&message="+url.QueryEscape(`{"pageSize":1}`), adminToken, "", ""))

	for _, test := range []struct {
		method, call, token, contentType, body string
		status                                 int
		code                                   string
	}{
		{"POST", "GetStatus", adminToken, asJSON, `{"environment":"nowhere"}`, 404, "not_found"},
		{"POST", "GetStatus", adminToken, asJSON, `{"environment":`, 400, "invalid_argument"},
		{"POST", "ListHosts", adminToken, asJSON, `{"pageToken":"x"}`, 400, "invalid_argument"},
		{"POST", "ListHosts", "", asJSON, `{}`, 401, "unauthenticated"},
		{"POST", "ListHosts", "wrong", asJSON, `{}`, 401, "unauthenticated"},
		{"POST", "ListHosts", adminToken, "text/plain", `{}`, 415, ""},
		{"GET", "CreateEnvironment?encoding=json&message=" + url.QueryEscape(`{"name":"prod"}`), adminToken, "", "", 405, ""},
		{"POST", "Nothing", adminToken, asJSON, `{}`, 404, ""},
	} {
		status, got := p.call(test.method, service+test.call, test.token, test.contentType, test.body)
		if status != test.status || (test.code != "" && got["code"] != test.code) {
			t.Errorf("%s %s %s: %d, %v, want %d %s", test.method, test.call, test.body, status, got, test.status, test.code)
		}
	}

	// The description of all this is there for everyone, and nothing else is.
	for path, want := range map[string]int{openapi.DocumentPath: 200, openapi.PagePath: 200, "/": 401, "/api/": 401, "/openapi.json/x": 401, service: 401} {
		if status, _ := p.call("GET", path, "", "", ""); status != want {
			t.Errorf("GET %s without a token: %d, want %d", path, status, want)
		}
	}

	// A stream is a POST too, each message behind a byte of flags and its length.
	frame := append([]byte{0, 0, 0, 0, 2}, "{}"...)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.api.URL+service+"ReadEvents", bytes.NewReader(frame))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	req.Header.Set("Content-Type", "application/connect+json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || !bytes.Contains(b, []byte(`"type":"environment.created"`)) {
		t.Errorf("stream: %s, %q, %v", res.Status, b, err)
	}
}

// TestSameList: a token belongs to the request that it came of, whatever page that asked for.
func TestSameList(t *testing.T) {
	a := &pb.ListInstancesRequest{Environment: "dev", PageSize: 3, PageToken: "x"}
	same := &pb.ListInstancesRequest{Environment: "dev"}
	if sameList(a) != sameList(same) || a.GetPageSize() != 3 {
		t.Error("the page is part of the list")
	}
	for _, other := range []pageRequest{&pb.ListInstancesRequest{Environment: "dev", All: true}, &pb.GetStatusRequest{Environment: "dev"}} {
		if sameList(a) == sameList(other) {
			t.Errorf("%v is the list of %v", a, other)
		}
	}
	if proto.Equal(a, same) {
		t.Error("the request was changed")
	}
}
