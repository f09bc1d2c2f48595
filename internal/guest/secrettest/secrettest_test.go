package secrettest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const secret = "s3cr3t/+ \"'&=? ünd"

// TestForms hides the secret in every form, at every place, and expects it to be found there and nowhere else.
func TestForms(t *testing.T) {
	f := For(secret)
	quoted, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	for name, texts := range map[string][]string{
		"raw": {secret, "x" + secret + "y"},
		"base64": {
			base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte("x" + secret + "yz")),
			base64.StdEncoding.EncodeToString([]byte("xy" + secret)), base64.RawURLEncoding.EncodeToString([]byte("xyz" + secret + "?>")),
			base64.URLEncoding.EncodeToString([]byte("x" + secret)),
		},
		"hex":         {hex.EncodeToString([]byte("x" + secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))},
		"URL-escaped": {url.QueryEscape(secret), url.PathEscape(secret), "a=" + strings.ToLower(url.QueryEscape(secret)), url.Values{"k": {secret}}.Encode()},
		"JSON":        {string(quoted)},
		"quoted":      {fmt.Sprintf("%q", secret)},
		"as numbers":  {fmt.Sprintf("%d", []byte("x"+secret))},
	} {
		for _, text := range texts {
			// At the border of what is read at a time, too.
			for _, before := range []int{0, 1 << 20, 1<<20 - len(text)/2, 1<<20 + f.longest - 5} {
				in := append(bytes.Repeat([]byte{'.'}, before), text...)
				if found, err := f.In(bytes.NewReader(append(in, "...."...))); err != nil || !slices.Contains(found, name) {
					t.Errorf("%s behind %d bytes as %q: found %v, %v", name, before, text, found, err)
				}
			}
		}
	}
	for _, text := range []string{"", secret[1:], secret[:len(secret)-1], strings.ToUpper(secret), strings.Repeat("s3cr3t", 1<<18)} {
		if found, err := f.In(strings.NewReader(text)); err != nil || len(found) > 0 {
			t.Errorf("%.40q: found %v, %v", text, found, err)
		}
	}
}

func TestBelow(t *testing.T) {
	dir := t.TempDir()
	name := strings.NewReplacer("/", "_").Replace(url.PathEscape(secret))
	for _, path := range []string{"clean", "deep/er/secret", "disk"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		content := "nothing"
		if path == "deep/er/secret" {
			content = "x" + secret
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk, err := os.OpenFile(filepath.Join(dir, "disk"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := disk.WriteAt([]byte(secret), 1<<40); err != nil { // behind a hole
		t.Fatal(err)
	}
	if err := disk.Truncate(2 << 40); err != nil {
		t.Fatal(err)
	}
	disk.Close()
	if err := os.Symlink(secret, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := For(secret).Below(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(found, "\n")
	for _, want := range []string{"deep/er/secret (content, raw)", "disk (content, raw)", "link (target, raw)", "(name, URL-escaped)"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "clean") {
		t.Errorf("found in a clean file:\n%s", all)
	}
}

// TestNoContent: what looks like a file and has nothing to read, as mounted namespaces do.
func TestNoContent(t *testing.T) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Skip(err)
	}
	defer ns.Close()
	if found, err := For(secret).In(&dataOf{file: ns}); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v", found, err)
	}
}

func TestInProcesses(t *testing.T) {
	const argument, variable = "k4nary-in-an-argument", "k4nary-in-a-variable"
	cmd := exec.Command("/bin/sh", "-c", "read x", argument)
	cmd.Env = []string{"K=" + base64.StdEncoding.EncodeToString([]byte(variable))}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]string{argument: "cmdline (raw)", variable: "environ (base64)", "k4nary-nowhere": ""} {
		found, err := For(s).InProcesses()
		if err != nil {
			t.Fatal(err)
		}
		mine := fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, want)
		if (want == "" && len(found) > 0) || (want != "" && !slices.Contains(found, mine)) {
			t.Errorf("%s: found %v, want %s", s, found, mine)
		}
	}
	in.Close()
	_ = cmd.Wait() // read fails at the end of its input
}
