package manifest

import (
	"fmt"
	"slices"
	"strconv"
)

// Unsupported lists what is valid but cannot run yet in this version of Pinnace, each as an error with code
// E150. Only what is about to run a manifest asks; whether a manifest is valid never depends on the build.
// Which values these are stands in the table.
func (m *Manifest) Unsupported() Problems {
	list := &problemList{src: m.source, noText: m.source == ""}
	m.pending(schemaV1(), &scope{m: m}, list)
	list.problems.sort()
	return list.problems
}

func (m *Manifest) pending(t *spec, s *scope, list *problemList) {
	for _, c := range t.children {
		switch c.Type {
		case Table:
			in := &scope{m: m, name: s.name}
			if c.present != nil && !c.present(in, false) {
				continue
			}
			if len(c.Pending) > 0 {
				m.addPending(c, t, "", "", list)
				continue
			}
			m.pending(c, in, list)
		case Tables:
			for _, name := range c.elements.names(m) {
				if len(c.Pending) > 0 {
					m.addPending(c, t, name, "", list)
					continue
				}
				in := &scope{m: m, name: name}
				c.elements.enter(in, name)
				m.pending(c, in, list)
			}
		default:
			if v, ok := c.pendingValue(s); ok {
				m.addPending(c, t, s.name, v, list)
			}
		}
	}
}

// pendingValue gives the value of a row when it cannot run yet.
func (c *spec) pendingValue(s *scope) (string, bool) {
	if len(c.Pending) == 0 {
		return "", false
	}
	switch v := c.ref(s).(type) {
	case *string:
		return strconv.Quote(*v), slices.Contains(c.Pending, *v)
	case *[]string:
		return "", len(*v) > 0
	default:
		return "", false
	}
}

func (m *Manifest) addPending(c, t *spec, name, value string, list *problemList) {
	p := Problem{
		Code: CodeUnsupported, Key: c.path(name), Message: "is valid, but this version of Pinnace cannot run it yet",
		Fix: "remove it for now, or upgrade Pinnace",
	}
	if c.Type == Tables {
		p.Key = c.Path + "." + displayName(name)
	}
	if value != "" {
		p.Message = fmt.Sprintf("%s is valid, but this version of Pinnace cannot run it yet", value)
	}
	if c.name == "edge" {
		p.Fix = `write edge = "raw" and a public_port for now`
	}
	list.add(m.where(name, c.Path, t.Path), p)
}
