package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// object is a JSON object whose members stay in order.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// describe puts first what is said of a thing, when something is.
func (o object) describe(text string) object {
	if text == "" {
		return o
	}
	return append(object{{"description", text}}, o...)
}

// prose is what a comment says, without its marks.
func prose(c protogen.CommentSet) string {
	text := string(c.Leading)
	if c.Trailing != "" {
		text += "\n" + string(c.Trailing)
	}
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

func path(m *protogen.Method) string {
	return "/" + string(m.Parent.Desc.FullName()) + "/" + string(m.Desc.Name())
}

func onlyReads(m *protogen.Method) bool {
	return m.Desc.Options().(*descriptorpb.MethodOptions).GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

func streams(m *protogen.Method) bool {
	return m.Desc.IsStreamingClient() || m.Desc.IsStreamingServer()
}

// document describes a service and all messages that its calls lead to.
func document(s *protogen.Service) object {
	schemas := &schemaSet{seen: map[protoreflect.FullName]bool{}}
	var paths object
	for _, m := range s.Methods {
		item := object{{"post", operation(m, schemas)}}
		if onlyReads(m) && !streams(m) {
			item = append(object{{"get", query(m, schemas)}}, item...)
		}
		paths = append(paths, member{path(m), item})
	}
	schemas.all = append(schemas.all, member{"Error", errorSchema()})
	return object{
		{"openapi", "3.1.0"},
		{"info", object{{"title", "Pinnace"}, {"version", "v1"}, {"description", prose(s.Comments)}}},
		{"security", []object{{{"token", []string{}}}}},
		{"paths", paths},
		{"components", object{
			{"securitySchemes", object{{"token", object{{"type", "http"}, {"scheme", "bearer"}}}}},
			{"schemas", schemas.all},
		}},
	}
}

// operation is a call as a POST: of one JSON object for another, or of streams of them.
func operation(m *protogen.Method, schemas *schemaSet) object {
	contentType, note := "application/json", ""
	if streams(m) {
		contentType = "application/connect+json"
		note = "A stream by the Connect protocol: each message behind a byte of flags and its length in four."
	}
	return object{
		{"operationId", string(m.Desc.Name())},
		{"requestBody", object{{"required", true}, {"content", object{{contentType, object{{"schema", schemas.message(m.Input)}}}}}}},
		{"responses", responses(m, contentType, schemas)},
	}.describe(strings.TrimSpace(prose(m.Comments) + "\n\n" + note))
}

// query is a call as a GET, which only those have that change nothing.
func query(m *protogen.Method, schemas *schemaSet) object {
	return object{
		{"operationId", "Get." + string(m.Desc.Name())},
		{"parameters", []object{
			{{"name", "encoding"}, {"in", "query"}, {"required", true}, {"schema", object{{"const", "json"}}}},
			{{"name", "message"}, {"in", "query"}, {"required", true}, {"content", object{{"application/json", object{{"schema", schemas.message(m.Input)}}}}}},
		}},
		{"responses", responses(m, "application/json", schemas)},
	}.describe(prose(m.Comments))
}

func responses(m *protogen.Method, contentType string, schemas *schemaSet) object {
	return object{
		{"200", object{{"description", "what was asked for"}, {"content", object{{contentType, object{{"schema", schemas.message(m.Output)}}}}}}},
		{"default", object{{"description", "why not"}, {"content", object{{"application/json", object{{"schema", reference("Error")}}}}}}},
	}
}

// errorSchema is what the Connect protocol answers when a call fails.
func errorSchema() object {
	codes := []string{
		"canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied", "resource_exhausted",
		"failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable", "data_loss", "unauthenticated",
	}
	return object{{"type", "object"}, {"properties", object{
		{"code", object{{"enum", codes}}},
		{"message", object{{"type", "string"}}},
	}}}
}
