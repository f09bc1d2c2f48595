package release

import (
	"fmt"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// The codes of what an environment lacks for a manifest. They are stable, as those of manifests are.
const (
	CodeNoVariable = "E400"
	CodeNoBundle   = "E401"
	CodeNoKey      = "E402"
	CodeNoRoom     = "E403"
)

// EnvironmentCodes lists the codes of CheckEnvironment with their meanings.
func EnvironmentCodes() []manifest.CodeMeaning {
	return []manifest.CodeMeaning{
		{Code: CodeNoVariable, Meaning: "the environment does not supply a variable of `vars`"},
		{Code: CodeNoBundle, Meaning: "the environment has no such secret bundle"},
		{Code: CodeNoKey, Meaning: "the secret bundle lacks a key"},
		{Code: CodeNoRoom, Meaning: "no host has room for an instance now"},
	}
}

// Environment is what a server says about an environment and a manifest.
type Environment struct {
	Name    string
	Vars    []string // that it does not supply
	Secrets []MissingSecret
	Count   int    // instances that it wants of the app
	NoRoom  string // why no host can take an instance; "" when one can
}

// MissingSecret is a bundle that is absent, or that lacks keys.
type MissingSecret struct {
	Bundle string
	Absent bool
	Keys   []string
}

// CheckEnvironment says what an environment lacks to run a manifest, in the order of the manifest.
func CheckEnvironment(m *manifest.Manifest, env Environment) manifest.Problems {
	problems := m.CheckCount(env.Count)
	add := func(code, key, why, fix, format string, args ...any) {
		problems = append(problems, manifest.Problem{
			Code: code, Severity: manifest.SeverityError, Key: key, Message: fmt.Sprintf(format, args...), Why: why, Fix: fix,
		})
	}
	name := shown(env.Name)
	for _, v := range env.Vars {
		add(CodeNoVariable, "vars", "the process would start without it", "set it in the environment, or take it out of vars",
			"the environment %s does not supply %s", name, plain(v))
	}
	for _, s := range env.Secrets {
		key := "secrets." + s.Bundle
		keys := plain(strings.Join(s.Keys, ", "))
		switch {
		case s.Absent && keys != "":
			add(CodeNoBundle, key, "", "create it there, with "+keys, "the environment %s has no secret bundle %s", name, shown(s.Bundle))
		case s.Absent:
			add(CodeNoBundle, key, "", "create it there", "the environment %s has no secret bundle %s", name, shown(s.Bundle))
		default:
			add(CodeNoKey, key, "", "add what is missing to the bundle", "the secret bundle %s of the environment %s lacks %s", shown(s.Bundle), name, keys)
		}
	}
	if env.NoRoom != "" {
		add(CodeNoRoom, "resources", "", "ask for less, or make room", "the environment %s has no room for an instance now: %s", name, plain(env.NoRoom))
	}
	for i := range problems {
		m.Locate(&problems[i])
	}
	inOrder(problems)
	return problems
}
