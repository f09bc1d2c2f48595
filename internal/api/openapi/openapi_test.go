package openapi_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/pinnacehq/pinnace/internal/api/openapi"
	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

type description struct {
	OpenAPI    string
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Schemas map[string]json.RawMessage
	}
}

// TestDocument: every call is described, with all messages that it leads to, and no other.
func TestDocument(t *testing.T) {
	var doc description
	if err := json.Unmarshal([]byte(openapi.Document), &doc); err != nil {
		t.Fatal(err)
	}
	service := pb.File_pinnace_v1_control_proto.Services().ByName("ControlService")
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		calls := doc.Paths["/pinnace.v1.ControlService/"+string(m.Name())]
		if calls["post"] == nil {
			t.Errorf("%s is not described; run: make generate", m.Name())
		}
		get := m.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS && !m.IsStreamingServer()
		if (calls["get"] != nil) != get {
			t.Errorf("%s: GET is described: %v, want %v", m.Name(), !get, get)
		}
		if !strings.Contains(openapi.Page, "/pinnace.v1.ControlService/"+string(m.Name())+"<") {
			t.Errorf("%s is not on the page", m.Name())
		}
	}
	if len(doc.Paths) != service.Methods().Len() {
		t.Errorf("%d paths for %d calls", len(doc.Paths), service.Methods().Len())
	}
	var all any
	if err := json.Unmarshal([]byte(openapi.Document), &all); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	references(all, used)
	for ref := range used {
		if name, ok := strings.CutPrefix(ref, "#/components/schemas/"); !ok || doc.Components.Schemas[name] == nil {
			t.Errorf("%s leads nowhere", ref)
		}
	}
	for name := range doc.Components.Schemas {
		if !used["#/components/schemas/"+name] {
			t.Errorf("nothing leads to %s", name)
		}
	}
}

// references collects everything that v refers to.
func references(v any, used map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			used[ref] = true
		}
		for _, below := range v {
			references(below, used)
		}
	case []any:
		for _, below := range v {
			references(below, used)
		}
	}
}

func TestHandle(t *testing.T) {
	mux := http.NewServeMux()
	openapi.Handle(mux)
	for path, want := range map[string]struct{ contentType, content string }{
		openapi.DocumentPath: {"application/json", openapi.Document},
		openapi.PagePath:     {"text/html; charset=utf-8", openapi.Page},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		body, err := io.ReadAll(w.Body)
		if err != nil || w.Code != http.StatusOK || string(body) != want.content || w.Header().Get("Content-Type") != want.contentType {
			t.Errorf("%s: status %d, %s, %d bytes, %v", path, w.Code, w.Header().Get("Content-Type"), len(body), err)
		}
		w = httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: status %d", path, w.Code)
		}
	}
}
