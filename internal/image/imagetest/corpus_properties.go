package imagetest

import (
	"fmt"
	"time"
)

// past is a time with nanoseconds.
func past() time.Time { return When().AddDate(-1, 0, 0).Add(123456789) }

// netAdmin is a capability of a program, as the kernel wants it.
const netAdmin = "\x01\x00\x00\x02\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// propertyCases are about what entries are besides their place: rules P and X.
func propertyCases() []Case {
	return []Case{
		{Rule: "P1", Name: "missing root", Layers: [][]Entry{{File("a", "1")}}, At: ".", Stat: "drwxr-xr-x 0:0 0"},
		{Rule: "P1", Name: "root entry", Layers: [][]Entry{{Dir("./").Mode(0o700).Owner(5, 6).Time(past()), File("a", "1")}}, At: ".", Stat: fmt.Sprintf("drwx------ 5:6 %d", past().UnixNano())},
		{Rule: "P1", Name: "root of a later layer", Layers: [][]Entry{{Dir("/").Mode(0o700)}, {Dir(".").Mode(0o711)}}, At: ".", Stat: fmt.Sprintf("drwx--x--x 0:0 %d", When().UnixNano())},
		{Rule: "P2", Name: "implicit parent", Layers: [][]Entry{{File("d/a", "1")}}, At: "d", Stat: "drwxr-xr-x 0:0 0"},
		{Rule: "P2", Name: "implicit parent keeps the lower directory", Layers: [][]Entry{{Dir("d").Mode(0o750).Owner(1, 2).Xattr("user.k", "v")}, {File("d/a", "1")}}, At: "d", Stat: fmt.Sprintf("drwxr-x--- 1:2 %d user.k=v", When().UnixNano())},
		{Rule: "P2", Name: "opaque keeps the lower directory", Layers: [][]Entry{{Dir("d").Mode(0o750)}, {Opaque("d"), File("d/a", "1")}}, At: "d", Stat: fmt.Sprintf("drwxr-x--- 0:0 %d", When().UnixNano())},
		{Rule: "P3", Name: "own entry replaces properties and attributes", Layers: [][]Entry{{Dir("d").Mode(0o750).Xattr("user.k", "v")}, {Dir("d").Owner(3, 4)}}, At: "d", Stat: fmt.Sprintf("drwxr-xr-x 3:4 %d", When().UnixNano())},
		{Rule: "P3", Name: "large ids and nanoseconds", Layers: [][]Entry{{File("a", "1").Owner(1<<32-2, 3_000_000_000).Time(past())}}, At: "a", Stat: fmt.Sprintf("-rw-r--r-- 4294967294:3000000000 %d", past().UnixNano())},
		{Rule: "X1", Name: "attributes", Layers: [][]Entry{{File("a", "1").Xattr("security.capability", netAdmin).Xattr("user.z", "")}}, At: "a", Stat: fmt.Sprintf("-rw-r--r-- 0:0 %d security.capability=%s user.z=", When().UnixNano(), netAdmin)},
		{Rule: "X2", Name: "overlay's and foreign attributes", Layers: [][]Entry{{
			Dir("d").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.redirect", "/x").Xattr("trusted.x", "y").Xattr("com.apple.quarantine", "q").Xattr("user.overlayx", "k"),
		}}, At: "d", Stat: fmt.Sprintf("drwxr-xr-x 0:0 %d user.overlayx=k", When().UnixNano())},
		{Rule: "X3", Name: "a hard link's own properties mean nothing", Layers: [][]Entry{{File("a", "1").Mode(0o600)}, {Link("b", "a").Mode(0o777).Owner(9, 9)}}, At: "b", Stat: fmt.Sprintf("-rw------- 0:0 %d", When().UnixNano())},
	}
}
