package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestFilesAreUpToDate(t *testing.T) {
	for name, want := range files() {
		file := filepath.Join("../../../../docs/specs/manifest", name)
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from the table in internal/manifest; run go generate ./internal/manifest", file)
		}
	}
}
