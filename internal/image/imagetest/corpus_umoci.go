package imagetest

import "maps"

// Why umoci's tree differs from what docs/design/layers.md says.
const (
	// WhenUnpacked is about times of directories that no entry gave, or that were changed after their own: umoci
	// leaves them at the time when it did that, so that two of its trees differ, too.
	WhenUnpacked = "umoci leaves the time of unpacking"

	inOrder      = "umoci does one entry after the other, so that their places in the tar matter"
	keepsAUFS    = "umoci takes AUFS's bookkeeping for files"
	keepsDevices = "Pinnace drops device nodes that a guest has no use for"
	noEmptyXattr = "umoci does not restore an attribute without a value"
	keepsXattrs  = "Pinnace drops attributes that overlayfs would act on"
)

// umoci lists the differences by the titles of the cases. Under "image" is a part of the message when umoci
// cannot unpack the image at all.
func umoci() map[string]map[string]string {
	return map[string]map[string]string{
		"M4 directory over symlink, content first":           reason(inOrder, "l/b: there", "r/b: not there"),
		"M4 child directory before the one over the symlink": reason(inOrder, "l/s: there", "r/s: mode", "r/s: size", "r/s: target"),
		"M5 parent through symlink":                          unpacked(".", "usr"),
		"M5 dotdot stops at the root":                        unpacked(".", "r"),
		"M5 dangling symlink gets its directory":             unpacked(".", "not", "not/there"),
		"M5 relative to the link's directory":                unpacked(".", "d"),
		"W1 whiteout of a directory":                         unpacked("."),
		"W2 whiteout and own directory":                      unpacked(".", "d"),
		"W2 whiteouts do not depend on each other":           reason(inOrder, "r/x: not there"),
		"W3 opaque":                                           unpacked("."),
		"W3 opaque after siblings":                            unpacked("."),
		"W3 opaque root":                                      unpacked("."),
		"W3 opaque keeps the directory":                       unpacked(".", "d"),
		"W4 whiteout through a symlink":                       unpacked(".", "r"),
		"W5 opaque spares what a replaced symlink pointed to": unpacked(".", "r"),
		"W5 marker before the directory":                      both(reason(inOrder, "r/a: there"), unpacked(".", "r")),
		"W5 whiteout too":                                     both(reason(inOrder, "r/a: there"), unpacked(".", "r")),
		"W6 opaque as a directory":                            unpacked("."),
		"W7 bookkeeping of AUFS":                              both(reason(keepsAUFS, ".wh..wh.plnk: not there", ".wh..wh.plnk/1.2: not there"), unpacked(".")),
		"L1 through a symlinked parent":                       unpacked(".", "r"),
		"L1 with dotdot":                                      unpacked(".", "r"),
		"L4 to itself":                                        {"image": "no such file or directory"}, // it removes the name first, and then there is no target
		"N1 names are made relative":                          unpacked(".", "c"),
		"D1 harmless devices stay":                            unpacked(".", "dev", "jail", "jail/dev"),
		"D2 other devices are dropped":                        both(reason(keepsDevices, "dev/mem: not there", "sda: not there", "zero: not there"), unpacked(".", "dev")),
		"D2 with their links, and hide what was below":        reason(keepsDevices, "a: not there", "b: not there"),
		"P2 implicit parent":                                  unpacked(".", "d"),
		"X1 attributes":                                       reason(noEmptyXattr, "a: attributes"),
		"X2 overlay's and foreign attributes":                 reason(keepsXattrs, "d: attributes"),
		"N1 long names of GNU tar":                            unpacked(".", "d"),
		"N1 256 directories deep":                             unpacked(".", "d", "d/d"),
		"N1 records for the whole archive":                    {"image": "unknown typeflag '\\x67'"}, // it takes the records for an entry
		"N1 a contiguous file":                                {"image": "unknown typeflag '\\x37'"}, // it does not know the type
		"M4 an implicit directory does not replace a symlink": unpacked("r", "r/s"),
		"M5 parent swapped for a symlink in the next layer":   unpacked(".", "etc"),
		"M5 symlink into /proc":                               unpacked(".", "proc", "proc/self", "proc/self/root", "proc/self/root/etc"),
		"M5 whiteouts and entries through one link":           unpacked(".", "usr"),
		"W2 of a parent of this layer's entries":              unpacked(".", "d", "d/e"),
		"W3 in each other":                                    unpacked(".", "d", "d/e"),
		"W3 and a whiteout beside it":                         unpacked(".", "d"),
		"W4 opaque through a symlink":                         unpacked(".", "r"),
		"L1 a chain of them":                                  unpacked(".", "d"),
		"L1 over a directory":                                 unpacked("."),
		"X4 of users on what is no file":                      {"image": "operation not permitted"}, // it sets the attribute, which Linux does not allow
	}
}

func reason(why string, where ...string) map[string]string {
	m := map[string]string{}
	for _, w := range where {
		m[w] = why
	}
	return m
}

func unpacked(dirs ...string) map[string]string {
	m := map[string]string{}
	for _, d := range dirs {
		m[d+": time"] = WhenUnpacked
	}
	return m
}

func both(a, b map[string]string) map[string]string {
	maps.Copy(a, b)
	return a
}
