package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxEnvironment bounds the variables of a process in all, counted as the kernel does: name, value, and the
// two bytes around them.
const maxEnvironment = 128 << 10

// stringList reads an argv or a set of strings.
func (d *decoder) stringList(c *spec, n *node, s *scope) ([]string, bool) {
	if n.kind != kindArray || n.how == byArray {
		f := fault{code: CodeWrongType, message: "expected a list of strings, found " + n.show()}
		if n.kind == kindString && c.Type == Argv {
			f.why = "no shell takes a command line apart"
			f.suggestion = argvOf(n.text)
		} else if n.kind == kindString {
			f.suggestion = "[" + quote(n.text) + "]"
		}
		return nil, d.judge(c, n, s, f)
	}
	if f := c.length(len(n.items)); f.code != "" {
		return nil, d.judge(c, n, s, f)
	}
	out := make([]string, 0, len(n.items))
	ok := true
	for _, item := range n.items {
		if item.kind != kindString {
			f := fault{code: CodeWrongType, message: "expected a string in the list, found " + item.show()}
			if item.text != "" {
				f.suggestion = quote(item.text)
			}
			ok = d.judge(c, item, s, f)
			continue
		}
		if f := c.judgeString(item.text); f.code != "" {
			ok = d.judge(c, item, s, f)
			continue
		}
		if c.Type == StringSet && slices.Contains(out, item.text) {
			ok = d.judge(c, item, s, fault{code: CodeOutOfRange, message: quote(item.text) + " is listed twice"})
			continue
		}
		out = append(out, item.text)
	}
	if c.Type == StringSet {
		slices.Sort(out)
	} else if ok && c.Min > 0 && out[0] == "" {
		ok = d.judge(c, n.items[0], s, fault{code: CodeOutOfRange, message: "the program's name is empty"})
	}
	return out, ok
}

// length checks the number of entries of a list or set.
func (c *spec) length(n int) fault {
	switch {
	case n == 0 && c.Min > 0:
		f := fault{code: CodeOutOfRange, message: "is an empty list"}
		if c.ImageDefault != "" {
			f.fix = "leave it out to get " + c.ImageDefault
		}
		return f
	case int64(n) > c.Max:
		return tooMany(n, c.Max)
	default:
		return fault{}
	}
}

// argvOf takes a simple command line apart, for a suggestion.
func argvOf(line string) string {
	if strings.ContainsAny(line, "\"'\\$|&;<>`\n") || len(line) > 200 {
		return ""
	}
	return "[" + oneOf(strings.Fields(line)) + "]"
}

// integerSet reads a set of HTTP status codes, the only set of integers there is.
func (d *decoder) integerSet(c *spec, n *node, s *scope) ([]int, bool) {
	if n.kind != kindArray || n.how == byArray {
		f := fault{code: CodeWrongType, message: "expected a list of integers, found " + n.show()}
		if n.kind == kindInteger {
			f.suggestion = "[" + n.literal() + "]"
		}
		return nil, d.judge(c, n, s, f)
	}
	if f := c.length(len(n.items)); f.code != "" {
		return nil, d.judge(c, n, s, f)
	}
	out := make([]int, 0, len(n.items))
	ok := true
	for _, item := range n.items {
		v, f := statusCode(item)
		if f.code == "" && slices.Contains(out, v) {
			f = fault{code: CodeOutOfRange, message: strconv.Itoa(v) + " is listed twice"}
		}
		if f.code != "" {
			ok = d.judge(c, item, s, f)
			continue
		}
		out = append(out, v)
	}
	slices.Sort(out)
	return out, ok
}

func statusCode(n *node) (int, fault) {
	if n.kind != kindInteger {
		return 0, fault{code: CodeWrongType, message: "expected an integer in the list, found " + n.show()}
	}
	v, f := plainInteger(n.text)
	switch {
	case f.code != "":
		return 0, f
	case v >= 300 && v <= 399:
		return 0, fault{code: CodeOutOfRange, message: fmt.Sprintf("%d is a redirect", v), why: "redirects are not followed, so they tell nothing about the instance: they always fail", fix: "probe the path that it leads to"}
	case v < 200 || v > 599:
		return 0, fault{code: CodeOutOfRange, message: fmt.Sprintf("%d is out of range: 200..599", v)}
	}
	return int(v), fault{}
}

// stringMap reads a table of free names and strings.
func (d *decoder) stringMap(c *spec, n *node, s *scope, dst *map[string]string) bool {
	if n.kind != kindTable {
		return d.judge(c, n, s, tableExpected(c, n))
	}
	out := make(map[string]string, len(n.items))
	ok, total := true, 0
	for _, item := range n.items {
		path := c.Path + "." + displayName(item.key)
		f := c.check(item.key)
		at := item.keyAt
		switch {
		case f.code != "":
		case item.kind != kindString:
			f, at = textExpected(item), item.at
		case strings.Contains(item.text, "\x00"):
			f, at = fault{code: CodeOutOfRange, message: "has a NUL character", why: "no variable can carry one"}, item.at
		}
		if f.code != "" {
			d.reportAt(at, path, f)
			ok = false
		}
		d.m.origins = append(d.m.origins, origin{key: c.Key, name: item.key, at: item.at})
		total += len(item.key) + len(item.text) + len("=\x00")
		out[item.key] = item.text
	}
	if len(out) > 0 {
		*dst = out
	}
	if int64(len(out)) > c.Max {
		ok = d.judge(c, n, s, tooMany(len(out), c.Max))
	}
	if total > maxEnvironment {
		ok = d.judge(c, n, s, fault{
			code: CodeOutOfRange, message: fmt.Sprintf("%d bytes in all; at most 128 KiB are allowed", total),
			fix: "put big values into a file of the image, or into a secret",
		})
	}
	return ok
}

func textExpected(n *node) fault {
	f := fault{code: CodeWrongType, message: "expected a string, found " + n.show(), why: "a variable of a process is text, and Pinnace does not choose its spelling"}
	if n.kind != kindTable && n.kind != kindArray {
		f.suggestion = quote(n.text)
	}
	return f
}
