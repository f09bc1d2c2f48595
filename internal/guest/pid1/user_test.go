//go:build linux

package pid1

import (
	"slices"
	"strings"
	"testing"
)

const (
	testPasswd = `# comment
root:x:0:0:root:/root:/bin/sh

daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
broken:x:notanumber:5::/nowhere:
short:x
negative:x:-1:5::/nowhere:
web:x:1000:1001:Web,,,:/home/web:/bin/sh
web:x:1002:1002:second of the name:/home/second:/bin/sh
homeless:x:1003:1003:::
3000:x:1004:1004:a name that is a number:/home/number:/bin/sh
huge:x:4294967295:1::/:
+nis::::::
`
	testGroup = `root:x:0:
web:x:1001:
logs:x:2000:other,web
media:x:2001:web
again:x:2000:web
nearly:x:2002:website,aweb
bad:x:nan:web
docker:x:2003
5000:x:0:
`
)

// TestResolveUser holds Docker's documented rules; see resolveUser.
func TestResolveUser(t *testing.T) {
	for _, tc := range []struct {
		spec     string
		uid, gid uint32
		groups   []uint32
		home     string
		err      string
	}{
		{spec: "", uid: 0, gid: 0, groups: []uint32{0}, home: "/root"},
		{spec: "root", uid: 0, gid: 0, groups: []uint32{0}, home: "/root"},
		{spec: "0", uid: 0, gid: 0, groups: []uint32{0}, home: "/root"},
		{spec: "web", uid: 1000, gid: 1001, groups: []uint32{1001, 2000, 2001}, home: "/home/web"},
		{spec: "1000", uid: 1000, gid: 1001, groups: []uint32{1001, 2000, 2001}, home: "/home/web"},
		{spec: "web:", uid: 1000, gid: 1001, groups: []uint32{1001, 2000, 2001}, home: "/home/web"},
		{spec: "web:media", uid: 1000, gid: 2001, groups: []uint32{2001}, home: "/home/web"},
		{spec: "web:2001", uid: 1000, gid: 2001, groups: []uint32{2001}, home: "/home/web"},
		{spec: "web:9999", uid: 1000, gid: 9999, groups: []uint32{9999}, home: "/home/web"},
		{spec: "4000", uid: 4000, gid: 0, groups: []uint32{0}, home: "/"},
		{spec: "4000:4000", uid: 4000, gid: 4000, groups: []uint32{4000}, home: "/"},
		{spec: "4000:media", uid: 4000, gid: 2001, groups: []uint32{2001}, home: "/"},
		{spec: ":media", uid: 0, gid: 2001, groups: []uint32{2001}, home: "/root"},
		{spec: "1002", uid: 1002, gid: 1002, groups: []uint32{1002, 2000, 2001}, home: "/home/second"},
		{spec: "homeless", uid: 1003, gid: 1003, groups: []uint32{1003}, home: "/"},
		{spec: "3000", uid: 3000, gid: 0, groups: []uint32{0}, home: "/"}, // a name, but numbers are never looked up as names
		{spec: "4000:2003", uid: 4000, gid: 2003, groups: []uint32{2003}, home: "/"},
		{spec: "4000:5000", uid: 4000, gid: 5000, groups: []uint32{5000}, home: "/"}, // likewise
		{spec: "web:2000", uid: 1000, gid: 2000, groups: []uint32{2000}, home: "/home/web"},
		{spec: "root:web", uid: 0, gid: 1001, groups: []uint32{1001}, home: "/root"},
		{spec: "web:media:more", err: "no group"},
		{spec: "nobody-here", err: `no user "nobody-here"`},
		{spec: "web:nothing", err: `no group "nothing"`},
		{spec: "broken", err: `no user "broken"`},
		{spec: "negative", err: `no user "negative"`},
		{spec: "-1", err: `no user "-1"`},
		{spec: "4294967295", err: "no user"},
		{spec: "2147483648", err: "no user"},
		{spec: "2147483647", uid: 2147483647, groups: []uint32{0}, home: "/"},
	} {
		t.Run(tc.spec, func(t *testing.T) {
			u, err := resolveUser(tc.spec, strings.NewReader(testPasswd), strings.NewReader(testGroup))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %+v, %v; want an error with %q", u, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if u.uid != tc.uid || u.gid != tc.gid || u.home != tc.home || !slices.Equal(u.groups, tc.groups) {
				t.Errorf("got %+v, want %+v", u, tc)
			}
		})
	}
}

func TestResolveUserHostileFiles(t *testing.T) {
	for name, files := range map[string][2]string{
		"line without end":    {"a:" + strings.Repeat("x", maxUserLine+1), ""},
		"file without end":    {strings.Repeat("a:b\n", maxUserFile/4+1), ""},
		"group line too long": {testPasswd, "g:x:5:" + strings.Repeat("member,", maxUserLine/7+1)},
	} {
		t.Run(name, func(t *testing.T) {
			if u, err := resolveUser("web", strings.NewReader(files[0]), strings.NewReader(files[1])); err == nil {
				t.Errorf("got %+v", u)
			}
		})
	}
	var many strings.Builder
	for i := range maxGroups + 10 {
		many.WriteString("g:x:")
		many.WriteString(strings.Repeat("1", 1+i%5))
		many.WriteString(":web\n")
	}
	u, err := resolveUser("web", strings.NewReader(testPasswd), strings.NewReader(many.String()))
	if err != nil || len(u.groups) > maxGroups {
		t.Errorf("%d groups, %v", len(u.groups), err)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("web", testPasswd, testGroup)
	f.Add("web:media", testPasswd, testGroup)
	f.Add("1000:", testPasswd, "\x00:\xff:")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		u, err := resolveUser(spec, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			return
		}
		if u.uid > maxID || u.gid > maxID || u.home == "" || !slices.Contains(u.groups, u.gid) || len(u.groups) > maxGroups {
			t.Errorf("%q: %+v", spec, u)
		}
	})
}
