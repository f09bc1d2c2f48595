package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestBookedBytes: what is booked at its size must not be missing from the disk as well, and only that.
func TestBookedBytes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := bookedBytes(dir); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
	write("disks/api-1.img", 1<<20)
	write("volumes/vol-1/volume.ext4", 2<<20)
	write("volumes/vol-1/snapshots/one.ext4", 4<<20)
	write("images/layer.tar", 8<<20)
	if got := bookedBytes(dir); got < 3<<20 || got > 3<<20+64<<10 {
		t.Errorf("got %d bytes, want 3 MiB", got)
	}
	// What a sparse file promises is not taken.
	if err := os.Truncate(filepath.Join(dir, "volumes/vol-1/volume.ext4"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if got := bookedBytes(dir); got > 3<<20+64<<10 {
		t.Errorf("got %d bytes for a sparse volume", got)
	}
}
