package main

import (
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

// A relative directory means the same to every process that a role starts, wherever that one works.
func TestDirectoriesAreAbsolute(t *testing.T) {
	here := t.TempDir()
	t.Chdir(here)
	for _, c := range []struct {
		args      []string
		data, run string // "" for a refusal
	}{
		{nil, "/var/lib/pinnace", "/run/pinnace"},
		{[]string{"--data-dir", "d", "--run-dir", "../r"}, filepath.Join(here, "d"), filepath.Join(filepath.Dir(here), "r")},
		{[]string{"--data-dir", "/srv/p", "--run-dir", "/run/p"}, "/srv/p", "/run/p"},
		{[]string{"--data-dir", ""}, "", ""},
	} {
		var dirs directories
		cmd := &cobra.Command{}
		dirs.add(cmd)
		err := cmd.ParseFlags(c.args)
		if c.data == "" {
			if err == nil {
				t.Errorf("%q: got %q, want an error", c.args, dirs)
			}
			continue
		}
		if err != nil || dirs.data != c.data || dirs.run != c.run {
			t.Errorf("%q: got %q and %v, want %q and %q", c.args, dirs, err, c.data, c.run)
		}
	}
}
