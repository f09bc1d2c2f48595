package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Severity tells errors, which refuse a manifest, from warnings, which do not.
type Severity string

// The severities.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// The codes of problems. They are stable: scripts may rely on them.
const (
	CodeSyntax        = "E100"
	CodeUnknownKey    = "E101"
	CodeWrongCase     = "E102"
	CodeWrongType     = "E103"
	CodeMissing       = "E104"
	CodeOutOfRange    = "E105"
	CodeBadUnit       = "E106"
	CodeUnknownPort   = "E110"
	CodeDuplicatePort = "E111"
	CodeNotApplicable = "E112"
	CodeVolumeRollout = "E120"
	CodeBadMount      = "E121"
	CodeTooMany       = "E122"
	CodeTimes         = "E130"
	CodeReservedName  = "E140"
	CodeNameTwice     = "E141"
	CodeUnsupported   = "E150"
	CodeNoReadyCheck  = "W200"
	CodeRootUser      = "W201"
)

// CodeMeaning is one line of the reference page's list of codes.
type CodeMeaning struct{ Code, Meaning string }

// Codes lists every code with its meaning.
func Codes() []CodeMeaning {
	return []CodeMeaning{
		{CodeSyntax, "not a TOML document that a manifest can be: syntax, a key defined twice, not UTF-8, too big, nested too deep"},
		{CodeUnknownKey, "unknown key"},
		{CodeWrongCase, "a known key in the wrong case"},
		{CodeWrongType, "a value of the wrong type"},
		{CodeMissing, "a required key is missing"},
		{CodeOutOfRange, "a value out of its range, not one of those there are, or not of the form that it must have"},
		{CodeBadUnit, "a duration or size without a unit, or with one that there is not"},
		{CodeUnknownPort, "a port name that is not in `ports`"},
		{CodeDuplicatePort, "two ports with the same number"},
		{CodeNotApplicable, "a key or value that does not apply next to the others"},
		{CodeVolumeRollout, "`canary` or `blue-green` with a volume"},
		{CodeBadMount, "a path that is reserved, or overlaps another one"},
		{CodeTooMany, "`per = \"workload\"` with more than one instance"},
		{CodeTimes, "times that cannot hold together"},
		{CodeReservedName, "a variable with the reserved prefix `PINNACE_`"},
		{CodeNameTwice, "a variable that gets its value from two places"},
		{CodeUnsupported, "valid, but this version of Pinnace cannot run it yet; said by `plan` and `deploy` only"},
		{CodeNoReadyCheck, "warning: no explicit ready check"},
		{CodeRootUser, "warning: the user is root"},
	}
}

// Problem is one thing that is wrong with a manifest, or worth a warning.
type Problem struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Line and Column start at 1; a column counts Unicode code points. Both are 0 when there is no text to
	// point at.
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Key    string `json:"key,omitempty"` // path of the key; "" when it is about the file as a whole
	// Message says what is wrong, Why the reason for the rule, Fix what to do.
	Message string `json:"message"`
	Why     string `json:"why,omitempty"`
	Fix     string `json:"fix,omitempty"`
	// Suggestion is what was probably meant: a key, or a value as written in TOML.
	Suggestion string `json:"suggestion,omitempty"`

	width int // code points to underline; 0 when it is about something that is not there
}

// String gives the problem on one line, without a file name.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d: ", p.Line, p.Column)
	}
	b.WriteString(p.headline())
	return b.String()
}

func (p Problem) headline() string {
	var b strings.Builder
	b.WriteString(p.Code)
	b.WriteByte(' ')
	if p.Key != "" {
		b.WriteString(p.Key)
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	if p.Suggestion != "" {
		fmt.Fprintf(&b, "; did you mean %s?", p.Suggestion)
	}
	return b.String()
}

// Problems is what is wrong with one manifest, in the order of the text.
type Problems []Problem

// HasErrors reports whether the manifest is refused.
func (p Problems) HasErrors() bool {
	return slices.ContainsFunc(p, func(q Problem) bool { return q.Severity == SeverityError })
}

// Errors gives the errors only.
func (p Problems) Errors() Problems { return p.only(SeverityError) }

// Warnings gives the warnings only.
func (p Problems) Warnings() Problems { return p.only(SeverityWarning) }

func (p Problems) only(s Severity) Problems {
	var out Problems
	for _, q := range p {
		if q.Severity == s {
			out = append(out, q)
		}
	}
	return out
}

// Err gives the errors as one error, one problem per line, or nil when there are warnings at most.
func (p Problems) Err() error {
	errs := p.Errors()
	if len(errs) == 0 {
		return nil
	}
	lines := make([]string, len(errs))
	for i, q := range errs {
		lines[i] = q.String()
	}
	return errors.New(strings.Join(lines, "\n"))
}

// sort puts the problems into the order of the text; at one place, by code and key.
func (p Problems) sort() {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Key, b.Key),
		)
	})
}
