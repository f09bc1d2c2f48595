package main

import (
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// schemaSet collects the schemas of messages, in the order in which they are first met.
type schemaSet struct {
	all  object
	seen map[protoreflect.FullName]bool
}

func reference(name string) object { return object{{"$ref", "#/components/schemas/" + name}} }

// message refers to the schema of a message, and makes it when it is the first time.
func (s *schemaSet) message(m *protogen.Message) object {
	if m.Desc.FullName() == "google.protobuf.Timestamp" {
		return object{{"type", "string"}, {"format", "date-time"}}
	}
	name := string(m.Desc.Name())
	if s.seen[m.Desc.FullName()] {
		return reference(name)
	}
	s.seen[m.Desc.FullName()] = true
	at := len(s.all)
	s.all = append(s.all, member{name, nil})
	var properties object
	for _, f := range m.Fields {
		schema := s.field(f)
		text := prose(f.Comments)
		if f.Oneof != nil && !f.Oneof.Desc.IsSynthetic() {
			text = strings.TrimSpace(text + "\nOnly one of " + alternatives(f.Oneof) + ".")
		}
		properties = append(properties, member{f.Desc.JSONName(), schema.describe(text)})
	}
	schema := object{{"type", "object"}}
	if len(properties) > 0 {
		schema = append(schema, member{"properties", properties})
	}
	s.all[at].value = schema.describe(prose(m.Comments))
	return reference(name)
}

func alternatives(o *protogen.Oneof) string {
	var names []string
	for _, f := range o.Fields {
		names = append(names, f.Desc.JSONName())
	}
	return strings.Join(names, ", ")
}

func (s *schemaSet) field(f *protogen.Field) object {
	switch {
	case f.Desc.IsMap():
		return object{{"type", "object"}, {"additionalProperties", s.value(f.Message.Fields[1])}}
	case f.Desc.IsList():
		return object{{"type", "array"}, {"items", s.value(f)}}
	default:
		return s.value(f)
	}
}

// value is the schema of one value, in the JSON form of protobuf: 64 bits as text, since many readers round large numbers.
func (s *schemaSet) value(f *protogen.Field) object {
	switch f.Desc.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return s.message(f.Message)
	case protoreflect.EnumKind:
		var names []string
		for _, v := range f.Enum.Values {
			names = append(names, string(v.Desc.Name()))
		}
		return object{{"type", "string"}, {"enum", names}}
	case protoreflect.BoolKind:
		return object{{"type", "boolean"}}
	case protoreflect.StringKind:
		return object{{"type", "string"}}
	case protoreflect.BytesKind:
		return object{{"type", "string"}, {"contentEncoding", "base64"}}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return object{{"type", "number"}}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return object{{"type", "string"}, {"format", f.Desc.Kind().String()}}
	default:
		return object{{"type", "integer"}, {"format", f.Desc.Kind().String()}}
	}
}
