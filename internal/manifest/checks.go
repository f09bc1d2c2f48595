package manifest

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// signals are those that may ask a process to end, or tell it that a secret changed.
var signals = []string{"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"}

// reservedPrefix begins the variables that belong to Pinnace.
const reservedPrefix = "PINNACE_"

const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	upper   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	numeric = "0123456789"

	octalDigits = "01234567"
)

// consistsOf reports whether every byte of s is in set.
func consistsOf(s, set string) bool {
	for i := range len(s) {
		if strings.IndexByte(set, s[i]) < 0 {
			return false
		}
	}
	return true
}

// matches reports whether s has 1 to limit bytes, the first one out of first, the others out of rest.
func matches(s, first, rest string, limit int) bool {
	return s != "" && len(s) <= limit && strings.IndexByte(first, s[0]) >= 0 && consistsOf(s[1:], rest)
}

// label checks the names that become DNS labels, identities and path segments.
func label(what, name string, limit int) fault {
	if matches(name, lower, lower+numeric+"-", limit) {
		return fault{}
	}
	f := fault{code: CodeOutOfRange, message: fmt.Sprintf("%s is not %s: lower-case letters, digits and -, a letter first, at most %d", quote(name), what, limit)}
	simple := strings.NewReplacer("_", "-", ".", "-", " ", "-").Replace(strings.ToLower(name))
	if simple != name && matches(simple, lower, lower+numeric+"-", limit) {
		f.suggestion = strconv.Quote(simple)
	}
	return f
}

func appName(s string) fault   { return label("an app's name", s, 40) }
func portName(s string) fault  { return label("a port's name", s, 15) }
func entryName(s string) fault { return label("a name", s, 40) }

// variableName checks the name of a variable of the process.
func variableName(s string) fault {
	if !matches(s, lower+upper+"_", lower+upper+numeric+"_", 256) {
		f := fault{code: CodeOutOfRange, message: quote(s) + " is not a variable's name: letters, digits and _, no digit first, at most 256"}
		if simple := strings.NewReplacer("-", "_", ".", "_").Replace(s); simple != s && variableName(simple).code == "" {
			f.suggestion = strconv.Quote(simple)
		}
		return f
	}
	if strings.HasPrefix(s, reservedPrefix) {
		return fault{
			code: CodeReservedName, message: s + " begins with " + reservedPrefix,
			why: "the prefix is reserved for what the platform itself tells a process", fix: "choose another name",
		}
	}
	return fault{}
}

// bundleKey checks the name of a key in a secret bundle, which is a file's name with format = "dir".
func bundleKey(s string) fault {
	if matches(s, lower+upper+numeric+"_", lower+upper+numeric+"_.-", 128) {
		return fault{}
	}
	return fault{code: CodeOutOfRange, message: quote(s) + " is not a key of a bundle: letters, digits, _, . and -, no . or - first, at most 128"}
}

const maxPath = 1024

// portReference checks what can be said about a port's name without knowing the ports.
func portReference(s string) fault {
	if !consistsOf(s, numeric) {
		return fault{}
	}
	return fault{
		code: CodeUnknownPort, message: quote(s) + " is not the name of a port", why: "a probe names its port, so that the number stands in one place",
		fix: "write the name that the port has in [ports]",
	}
}

// absolutePath checks a path in the file system of the instance. There is one spelling for every place.
func absolutePath(s string) fault {
	f := fault{code: CodeOutOfRange}
	switch {
	case !strings.HasPrefix(s, "/"):
		f.message = quote(s) + " is not an absolute path"
		f.suggestion = quote(path.Clean("/" + s))
	case len(s) > maxPath:
		f.message = fmt.Sprintf("the path has %d bytes; at most %d are allowed", len(s), maxPath)
	case path.Clean(s) != s:
		f.message = quote(s) + " is not the shortest way to write this path"
		f.suggestion = quote(path.Clean(s))
	case strings.ContainsFunc(s, isControl):
		f.message = quote(s) + " has a control character"
	default:
		return fault{}
	}
	return f
}

// requestPath checks the target of an HTTP probe.
func requestPath(s string) fault {
	f := fault{code: CodeOutOfRange}
	switch {
	case strings.HasPrefix(s, "http://"), strings.HasPrefix(s, "https://"):
		f.message = quote(s) + " is a URL; a probe goes to the instance itself, so only the path is needed"
	case !strings.HasPrefix(s, "/"):
		f.message = quote(s) + " does not begin with /"
		f.suggestion = quote("/" + s)
	case len(s) > maxPath:
		f.message = fmt.Sprintf("the path has %d bytes; at most %d are allowed", len(s), maxPath)
	case strings.ContainsAny(s, " #") || strings.ContainsFunc(s, func(r rune) bool { return isControl(r) || r > 126 }):
		f.message = quote(s) + " has a character that cannot stand in a request"
		f.fix = "escape it with %"
	default:
		return fault{}
	}
	return f
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// userSpec checks "uid", "uid:gid", "name" or "name:group".
func userSpec(s string) fault {
	user, group, both := strings.Cut(s, ":")
	if f := userOrGroup(s, user); f.code != "" || !both {
		return f
	}
	return userOrGroup(s, group)
}

func userOrGroup(s, part string) fault {
	f := fault{code: CodeOutOfRange, message: quote(s) + ` is not a user: "uid", "uid:gid", or names`}
	if part != "" && consistsOf(part, numeric) {
		// The last id means "no change" to chown and setresuid.
		if id, err := strconv.ParseUint(part, 10, 32); err != nil || id > 1<<32-2 {
			f.message = quote(s) + " has an id that is out of range: 0..4294967294"
			return f
		}
		if len(part) > 1 && part[0] == '0' {
			f.message = quote(s) + " has an id with leading zeros"
			return f
		}
		return fault{}
	}
	if !matches(part, lower+upper+"_", lower+upper+numeric+"_.-", 32) {
		return f
	}
	return fault{}
}

// edgeValue has a text of its own for a value that is reserved.
func edgeValue(s string) fault {
	if s != "tls" {
		return fault{}
	}
	return fault{
		code: CodeOutOfRange, message: `"tls" is reserved: Pinnace does not terminate TLS yet`,
		fix: `use "sni" to pass TLS through to the workload, or "raw" for a port of its own`,
	}
}

// archName knows what uname calls the architectures.
func archName(s string) fault {
	for _, pair := range [][2]string{{"x86_64", "amd64"}, {"x86-64", "amd64"}, {"x64", "amd64"}, {"aarch64", "arm64"}, {"arm64v8", "arm64"}} {
		if _, name, _ := strings.Cut(s, "/"); strings.EqualFold(s, pair[0]) || name == pair[1] {
			return fault{code: CodeOutOfRange, message: quote(s) + " is not what images call this architecture", suggestion: quote(pair[1])}
		}
	}
	return fault{}
}

// onChange checks what a new version of a secret does.
func onChange(s string) fault {
	if s == OnChangeRollout || s == OnChangeNone {
		return fault{}
	}
	f := fault{code: CodeOutOfRange, message: fmt.Sprintf(`%s is not "rollout", "none", or "signal:" and one of %s`, quote(s), strings.Join(signals, ", "))}
	name, isSignal := strings.CutPrefix(s, OnChangeSignal)
	if isSignal && slices.Contains(signals, name) {
		return fault{}
	}
	if near := nearest(name, signals); near != "" {
		f.suggestion = strconv.Quote(OnChangeSignal + near)
	} else if near := nearest(s, []string{OnChangeRollout, OnChangeNone}); near != "" {
		f.suggestion = strconv.Quote(near)
	}
	return f
}
