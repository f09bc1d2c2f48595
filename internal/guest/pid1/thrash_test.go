//go:build linux

package pid1

import "testing"

func TestThrashWatch(t *testing.T) {
	const page, limit = 4 << 10, 64 << 20
	full := memoryUse{current: limit - 300<<10, limit: limit, cache: 400 << 10}
	// each has what was found at a look, and how many pages were read again until the next.
	type look struct {
		use  memoryUse
		read int64
	}
	without := func(change func(*memoryUse)) memoryUse {
		use := full
		change(&use)
		return use
	}
	const turns = thrashTurns * (400 << 10) / page
	for name, tt := range map[string]struct {
		other look // each look that is not full
		when  func(i int) bool
		want  int // the look at which thrashing is found; -1 for none of 100
	}{
		"thrashes at once": {when: func(int) bool { return false }, want: thrashLooks},
		"room again at times": {
			other: look{without(func(u *memoryUse) { u.current = limit - limit/nearLimit }), turns},
			when:  func(i int) bool { return i%(thrashLooks/2) == 0 }, want: -1,
		},
		"a second without a processor": {
			other: look{full, 0}, when: func(i int) bool { return i == thrashLooks }, want: thrashLooks + 1 + (thrashLooks+1)/2,
		},
		"later": {
			other: look{without(func(u *memoryUse) { u.current = limit / 2 }), 0},
			when:  func(i int) bool { return i < 20 }, want: 19 + thrashLooks,
		},
		"a cache of some size": {
			other: look{without(func(u *memoryUse) { u.cache = limit / tinyCache }), turns * 100},
			when:  func(int) bool { return true }, want: -1,
		},
		"full, and reads little": {other: look{full, turns - 1}, when: func(int) bool { return true }, want: -1},
		"nothing cached": {
			other: look{without(func(u *memoryUse) { u.cache = 0 }), thrashTurns},
			when:  func(int) bool { return true }, want: thrashLooks,
		},
		"nothing cached or read": {
			other: look{without(func(u *memoryUse) { u.cache = 0 }), 0},
			when:  func(int) bool { return true }, want: -1,
		},
		"no limit": {
			other: look{without(func(u *memoryUse) { u.limit = 0 }), turns},
			when:  func(int) bool { return true }, want: -1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var w thrashWatch
			found, refaults := -1, int64(0)
			for i := range 100 {
				l := look{full, turns}
				if tt.when(i) {
					l = tt.other
				}
				refaults += l.read
				l.use.refaults = refaults
				if w.look(l.use, page) {
					found = i
					break
				}
			}
			if found != tt.want {
				t.Errorf("found at look %d, expected %d", found, tt.want)
			}
		})
	}
}
