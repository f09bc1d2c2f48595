package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2/unstable"
)

func TestFormatGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/format/*.toml")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, strings.TrimSuffix(path, ".toml")+".out", checkFormat(t, src))
		windows := checkFormat(t, bytes.ReplaceAll(src, []byte("\n"), []byte("\r\n")))
		if unix := bytes.ReplaceAll(windows, []byte("\r"), nil); !bytes.Equal(unix, checkFormat(t, src)) {
			t.Errorf("%s: with the line breaks of Windows:\n%s", path, windows)
		}
	}
}

func TestFormatOnTheCorpus(t *testing.T) {
	for _, folder := range []string{"valid", "invalid"} {
		for name, src := range corpus(t, folder) {
			t.Run(name, func(t *testing.T) { checkFormat(t, src) })
		}
	}
	for name, src := range corpus(t, "valid") {
		if out, _ := Format(src); out == nil {
			t.Errorf("%s is refused", name)
		}
	}
	if out := checkFormat(t, Template("shop")); !bytes.Equal(out, Template("shop")) {
		t.Errorf("what init writes is not formatted; want:\n%s", out)
	}
}

func TestFormatRefusesBrokenText(t *testing.T) {
	for _, src := range []string{"a = ", "a = 1\na = 2\n", "\ufeffa = 1\n", "[a.b.c.d.e]\n"} {
		if out, problems := Format([]byte(src)); out != nil || !problems.HasErrors() {
			t.Errorf("%q became %q with %v", src, out, problems)
		}
	}
	for src, want := range map[string]string{"": "", "\n\n": "", " \t# x\t \n\n": "# x\n", "a=1": "a = 1\n"} {
		if out := checkFormat(t, []byte(src)); string(out) != want {
			t.Errorf("%q became %q, want %q", src, out, want)
		}
	}
}

// checkFormat formats a text and checks what always holds: the tree and the canonical form are the same, every
// comment is there, in its order, and formatting the result changes nothing.
func checkFormat(t *testing.T, src []byte) []byte {
	t.Helper()
	out, problems := Format(src)
	if (out == nil) == (len(problems) == 0) && len(src) > 0 {
		t.Fatalf("result %q with %v", out, problems)
	}
	if out == nil {
		return nil
	}
	before, _ := Parse(src)
	after, _ := Parse(out)
	if (before == nil) != (after == nil) || before != nil && before.Hash() != after.Hash() {
		t.Errorf("another meaning:\n%s\n---\n%s", src, out)
	}
	if want, got := comments(src), comments(out); !slices.Equal(want, got) {
		t.Errorf("other comments:\n%q\n%q", want, got)
	}
	again, problems := Format(out)
	if !bytes.Equal(again, out) {
		t.Errorf("not stable, %v:\n%s\n---\n%s", problems, out, again)
	}
	for line := range strings.Lines(string(out)) {
		if before != nil && len(problems) == 0 && !bytes.Contains(src, []byte(`""`)) && !bytes.Contains(src, []byte(`''`)) &&
			strings.TrimRight(line, " \t\r\n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("white space at the end of %q", line)
		}
	}
	return out
}

// comments gives what the parser says the comments are.
func comments(src []byte) []string {
	var out []string
	p := unstable.Parser{KeepComments: true}
	p.Reset(src)
	var gather func(n *unstable.Node)
	gather = func(n *unstable.Node) {
		for ; n.Valid(); n = n.Next() {
			if n.Kind == unstable.Comment {
				out = append(out, strings.TrimRight(string(n.Data), " \t\r"))
			}
			gather(n.Child())
		}
	}
	for p.NextExpression() {
		// An expression may be followed by its comment, which is its sibling.
		gather(p.Expression())
	}
	slices.Sort(out)
	return out
}

// FuzzFormat looks for texts whose meaning or comments the layout changes, and for layouts that are not stable.
func FuzzFormat(f *testing.F) {
	for _, folder := range []string{"valid", "invalid"} {
		for _, src := range corpus(f, folder) {
			f.Add(src)
		}
	}
	messy, err := os.ReadFile("testdata/format/messy.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(messy)
	f.Add([]byte("a = [ # x\n\n[[1,2],#y\n\n3\n,4 #z\n,] ]\n[[ b . 'c d' ]]#q\n'a\"b'.\"\\u0061\" = {x=1,#r\n}\n"))
	f.Add([]byte("a = 1979-05-27 07:32:00 # when\nb = '''\r\n x'''''\r\nc = \"\"\"a\\\"\"\"\"\"\r\n"))
	f.Fuzz(func(t *testing.T, src []byte) { checkFormat(t, src) })
}
