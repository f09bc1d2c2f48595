package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// Bounds of what files with variables and secrets hold, in bytes. Those of secrets are the guest's.
const (
	maxInputFile = 1 << 20
	maxBundle    = 256 << 10
	maxAllBundle = 1 << 20
)

var (
	localName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,39}$`)
	varName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	secretKey = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// readInputs reads variables, secrets and ports, and says what is missing of those that the manifest asks for.
func (s *localSpec) readInputs(c *cli, f *localFlags) (missing manifest.Problems, err error) {
	if s.vars, err = readVars(c, s.manifest, f); err != nil {
		return nil, err
	}
	if s.secrets, err = readBundles(s.manifest, f.secrets); err != nil {
		return nil, err
	}
	if s.publish, err = readPublish(s.manifest, f.publish); err != nil {
		return nil, err
	}
	return s.missing(), nil
}

// missing says, for all at once, what the manifest asks for and nobody gave.
func (s *localSpec) missing() manifest.Problems {
	var problems manifest.Problems
	add := func(code, key, fix, format string, args ...any) {
		p := manifest.Problem{Code: code, Severity: manifest.SeverityError, Key: key, Message: fmt.Sprintf(format, args...), Fix: fix}
		s.manifest.Locate(&p)
		problems = append(problems, p)
	}
	for _, name := range s.manifest.Vars {
		if _, ok := s.vars[name]; !ok {
			add(release.CodeNoVariable, "vars", fmt.Sprintf("--var %s=VALUE, or a line of a --vars-file", name), "the variable %s is not given", name)
		}
	}
	for _, bundle := range sortedKeys(s.manifest.Secrets) {
		want := s.manifest.Secrets[bundle]
		keys := slices.Concat(want.Require, want.Env)
		slices.Sort(keys)
		keys = slices.Compact(keys)
		have, ok := s.secrets[bundle]
		if !ok {
			text := "the secret bundle is not given"
			if len(keys) > 0 {
				text += "; it must have " + strings.Join(keys, ", ")
			}
			add(release.CodeNoBundle, "secrets."+bundle, fmt.Sprintf("--secret %s=FILE", bundle), "%s", text)
			continue
		}
		keys = slices.DeleteFunc(keys, func(key string) bool { _, ok := have[key]; return ok })
		if len(keys) > 0 {
			add(release.CodeNoKey, "secrets."+bundle, "add what is missing to the file", "the secret bundle lacks %s", strings.Join(keys, ", "))
		}
	}
	slices.SortStableFunc(problems, func(a, b manifest.Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return problems
}

// readVars gives the variables that the manifest asks for. --var outranks files, and a later file an earlier one.
func readVars(c *cli, m *manifest.Manifest, f *localFlags) (map[string]string, error) {
	vars := map[string]string{}
	for _, file := range f.varsFiles {
		text, err := readBounded(file, maxInputFile)
		if err != nil {
			return nil, fail(inputStatus(err), "", "--vars-file: %w", err)
		}
		have, err := parseDotenv(text)
		if err != nil {
			return nil, fail(exitInvalid, dotenvHint, "--vars-file %s:%w", printable(file), err)
		}
		var unused []string
		for _, name := range sortedKeys(have) {
			if !slices.Contains(m.Vars, name) {
				unused = append(unused, printable(name))
				continue
			}
			vars[name] = have[name]
		}
		if len(unused) > 0 {
			c.say("note: the manifest's vars do not ask for %s, which %s has", strings.Join(unused, ", "), printable(file))
		}
	}
	for _, text := range f.vars {
		name, value, ok := strings.Cut(text, "=")
		switch {
		case !ok || !varName.MatchString(name):
			return nil, fail(exitInvalid, "it looks like --var PUBLIC_URL=http://localhost:8080", "--var %q is not KEY=VALUE", printable(text))
		case !slices.Contains(m.Vars, name):
			return nil, fail(exitInvalid, "add it there, or write it into [env]", "--var %s: the manifest does not name it in vars, so the process would not get it", name)
		}
		vars[name] = value
	}
	for _, name := range sortedKeys(vars) {
		if v := vars[name]; strings.ContainsRune(v, 0) || !utf8.ValidString(v) {
			return nil, fail(exitInvalid, "", "the variable %s is not text: it has a NUL, or is not UTF-8", name)
		}
	}
	return vars, nil
}

// readBundles reads the secrets. Nothing of a value is ever in a message.
func readBundles(m *manifest.Manifest, given []string) (map[string]map[string][]byte, error) {
	bundles := map[string]map[string][]byte{}
	total := 0
	for _, text := range given {
		name, path, ok := strings.Cut(text, "=")
		if !ok || path == "" {
			// What was written may be the secret itself.
			return nil, fail(exitInvalid, "it looks like --secret db=db.env; values are never written on a command line", "--secret wants BUNDLE=PATH")
		}
		if _, ok := m.Secrets[name]; !ok {
			return nil, fail(exitInvalid, "the manifest's bundles: "+orNone(sortedKeys(m.Secrets)), "--secret %s: the manifest has no [secrets.%s]", printable(name), printable(name))
		}
		if _, ok := bundles[name]; ok {
			return nil, fail(exitInvalid, "", "--secret %s is given twice", name)
		}
		values, err := readBundle(path)
		if err != nil {
			return nil, fail(inputStatus(err), "a file of KEY=VALUE lines, of JSON, or a folder with a file for each key", "--secret %s: %w", name, err)
		}
		size := 0
		for key, value := range values {
			if !secretKey.MatchString(key) {
				return nil, fail(exitInvalid, "", "--secret %s: %q cannot be a key: want 1 to 128 of letters, digits, _, . and -, the first a letter, a digit or _", name, printable(key))
			}
			size += len(key) + len(value)
		}
		total += size
		if size > maxBundle || total > maxAllBundle {
			return nil, fail(exitInvalid, "secrets are held in memory; bring large files in the image or in a volume",
				"--secret %s: a bundle has at most %s with its keys, and all together have %s", name, byteSize(maxBundle), byteSize(maxAllBundle))
		}
		bundles[name] = values
	}
	return bundles, nil
}

// readBundle reads a bundle from a folder, from JSON, or from lines.
func readBundle(path string) (map[string][]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return readBundleFolder(path)
	}
	text, err := readBounded(path, maxInputFile) // in which there may be more than what it says
	if err != nil {
		return nil, err
	}
	return parseBundle(path, text)
}

// readBundleFolder takes each file as it is, a last line's end included. Names that begin with a dot are left out: they
// are what programs keep beside what people put there.
func readBundleFolder(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	values := map[string][]byte{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			return nil, cmp.Or(err, fmt.Errorf("%s is a folder: a bundle has no folders in it", path))
		}
		if values[e.Name()], err = readBounded(path, maxBundle); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// parseBundleJSON reads one object of strings. The decoder's own errors may quote what is there, so they are not shown.
func parseBundleJSON(path string, text []byte) (map[string][]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	broken := func() error { return fmt.Errorf("%s is not JSON, at byte %d", path, dec.InputOffset()) }
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, broken()
	}
	values := map[string][]byte{}
	for dec.More() {
		t, err := dec.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return nil, broken()
		}
		if _, twice := values[key]; twice {
			return nil, fmt.Errorf("%s has the key %q twice", path, printable(key))
		}
		t, err = dec.Token()
		if err != nil {
			return nil, broken()
		}
		value, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("%s: the value of %q is not a string", path, printable(key))
		}
		values[key] = []byte(value)
	}
	if _, err := dec.Token(); err != nil {
		return nil, broken()
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s has something behind its object", path)
	}
	return values, nil
}

const dotenvHint = `each line is KEY=VALUE, KEY="a value with \n in it", KEY='a value as it is', empty, or begins with #`

// parseDotenv reads lines of KEY=VALUE. A value in double quotes may have \n, \t, \\ and \" in it; one in single quotes is
// taken as it is; one without quotes goes to the end of its line, without the white space around it. Nothing is
// expanded. Errors begin with the number of the line, and never have a value in them.
func parseDotenv(text []byte) (map[string]string, error) {
	if !utf8.Valid(text) || bytes.ContainsRune(text, 0) {
		return nil, errors.New(" it is not text: it has a NUL, or is not UTF-8")
	}
	values := map[string]string{}
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\uFEFF")) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || !secretKey.MatchString(key) {
			return nil, fmt.Errorf("%d: not KEY=VALUE", number)
		}
		if _, twice := values[key]; twice {
			return nil, fmt.Errorf("%d: %s is there twice", number, key)
		}
		value, err := unquote(value)
		if err != nil {
			return nil, fmt.Errorf("%d: the value of %s %w", number, key, err)
		}
		values[key] = value
	}
	return values, nil
}

// unquote reads a value.
func unquote(value string) (string, error) {
	if value == "" || value[0] != '"' && value[0] != '\'' {
		return value, nil
	}
	quote := value[0]
	if len(value) < 2 || value[len(value)-1] != quote {
		return "", errors.New("has no closing quote at the end of its line")
	}
	inner := value[1 : len(value)-1]
	if quote == '\'' {
		return inner, nil
	}
	var b strings.Builder
	for i := 0; i < len(inner); i++ {
		switch {
		case inner[i] == '"':
			return "", errors.New("has a quote in it, which must be \\\"")
		case inner[i] != '\\':
			b.WriteByte(inner[i])
			continue
		}
		if i++; i == len(inner) {
			return "", errors.New("has no closing quote at the end of its line")
		}
		escaped, ok := map[byte]byte{'n': '\n', 't': '\t', 'r': '\r', '\\': '\\', '"': '"', '$': '$'}[inner[i]]
		if !ok {
			return "", errors.New("has a \\ before something else than n, t, r, $, \\ and \"")
		}
		b.WriteByte(escaped)
	}
	return b.String(), nil
}

// readBounded reads a file of at most that many bytes.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s has more than %s", path, byteSize(most))
	}
	return b, err
}

// inputStatus is the status of a file that cannot be used.
func inputStatus(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return exitNotFound
	}
	return exitInvalid
}

// readPublish reads which ports were chosen.
func readPublish(m *manifest.Manifest, given []string) (map[string]int, error) {
	chosen := map[string]int{}
	const hint = "it looks like --publish web=8080, where web is the name of a port of the manifest, on 127.0.0.1"
	for _, text := range given {
		name, number, ok := strings.Cut(text, "=")
		port, err := strconv.Atoi(number)
		switch _, known := m.Ports[name]; {
		case !ok || err != nil || port < 1 || port > 65535:
			return nil, fail(exitInvalid, hint, "--publish %q is not NAME=PORT", printable(text))
		case !known:
			return nil, fail(exitInvalid, "the manifest's ports: "+orNone(sortedKeys(m.Ports)), "--publish %s: the manifest has no port %q", printable(text), printable(name))
		}
		if _, twice := chosen[name]; twice {
			return nil, fail(exitInvalid, hint, "--publish %s is given twice", name)
		}
		for other, taken := range chosen {
			if taken == port && m.Ports[other].Protocol == m.Ports[name].Protocol {
				return nil, fail(exitInvalid, hint, "--publish gives %s and %s the same port %d", other, name, port)
			}
		}
		chosen[name] = port
	}
	return chosen, nil
}
