package main

import (
	_ "embed"
	"html/template"
	"io"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"prose":     prose,
	"path":      path,
	"onlyReads": onlyReads,
	"streams":   streams,
	"kind":      kind,
	"linked":    linked,
	"paragraphs": func(text string) []string {
		return strings.Split(text, "\n\n")
	},
}).Parse(pageText))

// page writes the description for people.
func page(w io.Writer, s *protogen.Service) error {
	var messages []*protogen.Message
	seen := map[protoreflect.FullName]bool{}
	var visit func(m *protogen.Message)
	visit = func(m *protogen.Message) {
		if seen[m.Desc.FullName()] || m.Desc.FullName() == "google.protobuf.Timestamp" {
			return
		}
		seen[m.Desc.FullName()] = true
		if !m.Desc.IsMapEntry() {
			messages = append(messages, m)
		}
		for _, f := range m.Fields {
			if f.Message != nil {
				visit(f.Message)
			}
		}
	}
	for _, m := range s.Methods {
		visit(m.Input)
		visit(m.Output)
	}
	return pageTemplate.Execute(w, map[string]any{"Service": s, "Messages": messages})
}

// linked is the message that a field leads to, which the page has; nil when it is a plain value.
func linked(f *protogen.Field) *protogen.Message {
	if f.Desc.IsMap() {
		return linked(f.Message.Fields[1])
	}
	if f.Message == nil || f.Message.Desc.FullName() == "google.protobuf.Timestamp" {
		return nil
	}
	return f.Message
}

// kind says in a few words what a field holds.
func kind(f *protogen.Field) string {
	switch {
	case f.Desc.IsMap():
		return "map of text to " + kind(f.Message.Fields[1])
	case f.Desc.IsList():
		return "list of " + single(f)
	default:
		return single(f)
	}
}

func single(f *protogen.Field) string {
	switch {
	case f.Message != nil && f.Message.Desc.FullName() == "google.protobuf.Timestamp":
		return "time"
	case f.Message != nil:
		return string(f.Message.Desc.Name())
	case f.Enum != nil:
		var names []string
		for _, v := range f.Enum.Values {
			names = append(names, string(v.Desc.Name()))
		}
		return strings.Join(names, " | ")
	default:
		return f.Desc.Kind().String()
	}
}
