package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sizeFlag is a number of bytes in the spelling of manifests ("10GiB"), or, where share is allowed, a part of the
// file system ("80%").
type sizeFlag struct {
	bytes   int64
	percent int64 // of the file system; 0 when bytes is what counts
	share   bool  // a part is allowed
}

// String implements pflag.Value.
func (f *sizeFlag) String() string {
	if f.percent > 0 {
		return strconv.FormatInt(f.percent, 10) + "%"
	}
	for _, unit := range []struct {
		name   string
		factor int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if f.bytes >= unit.factor && f.bytes%unit.factor == 0 {
			return strconv.FormatInt(f.bytes/unit.factor, 10) + unit.name
		}
	}
	return strconv.FormatInt(f.bytes, 10)
}

// Type implements pflag.Value.
func (f *sizeFlag) Type() string { return "size" }

// Set implements pflag.Value.
func (f *sizeFlag) Set(text string) error {
	if digits, ok := strings.CutSuffix(text, "%"); ok && f.share {
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 1 || n > 100 {
			return fmt.Errorf("%q is not a part: want 1%% to 100%%", text)
		}
		f.percent, f.bytes = n, 0
		return nil
	}
	if text == "0" {
		f.percent, f.bytes = 0, 0
		return nil
	}
	digits := strings.TrimRight(text, "KMGTiB")
	factor := map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if factor == 0 || err != nil || n < 0 {
		want := "want digits and KiB, MiB, GiB or TiB, such as 10GiB"
		if f.share {
			want += ", or a part of the file system, such as 80%"
		}
		return fmt.Errorf("%q is not a size: %s", text, want)
	}
	if n > math.MaxInt64/factor {
		return errors.New(text + " is too big")
	}
	f.percent, f.bytes = 0, n*factor
	return nil
}

// of is the size in bytes, where the file system is that of dir.
func (f *sizeFlag) of(dir string) (int64, error) {
	if f.percent == 0 {
		return f.bytes, nil
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return int64(disk.Blocks) / 100 * disk.Bsize * f.percent, nil
}
