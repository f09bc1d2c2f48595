package main

import (
	"bytes"
	"os"
	"testing"
)

func TestPageIsUpToDate(t *testing.T) {
	const file = "../../../../docs/specs/manifest/manifest-schema.md"
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, page()) {
		t.Errorf("%s differs from the table in internal/manifest; run go generate ./internal/manifest", file)
	}
}
