package release

import (
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

const maxAccounts = 8 << 20 // bytes of passwd or group, as in the guest

// account is who the process runs as, as far as it is known without running it.
type account struct {
	spec   string // user[:group]
	known  bool
	uid    uint32
	groups []uint32
}

func (a account) shown() string {
	if a.spec == "" {
		return "root"
	}
	return shown(a.spec)
}

// account finds the user of the process in the image, as the guest will.
func (f *fit) account() {
	f.user.spec = f.image.User
	if f.m.User != "" {
		f.user.spec = f.m.User
	}
	user, group, _ := strings.Cut(f.user.spec, ":")
	if f.m.User == "" && (user == "" || user == "0" || user == "root") {
		f.warn(CodeImageRoot, "user", "the process runs as root, the image's user", "most programs need no root, even in a machine of their own",
			`set user, such as "10001:10001", or USER in the build`)
	}
	if user == "" {
		user = "0"
	}
	if f.image.Files == nil {
		return
	}
	passwd, ok := f.lines("user", CodeNoUser, "/etc/passwd")
	if !ok {
		return
	}
	groups, ok := f.lines("user", CodeNoGroup, "/etc/group")
	if !ok {
		return
	}
	name := f.passwd(user, passwd)
	if group != "" {
		f.group(group, groups)
		return
	}
	for _, g := range groups {
		if len(g) < 4 || name == "" {
			continue
		}
		if gid, err := parseID(g[2]); err == nil && containsName(g[3], name) {
			f.user.groups = append(f.user.groups, gid)
		}
	}
}

// passwd sets uid and primary group, and gives the name.
func (f *fit) passwd(user string, lines [][]string) string {
	number, numberErr := parseID(user)
	for _, l := range lines {
		if len(l) < 4 {
			continue
		}
		uid, uidErr := parseID(l[2])
		gid, gidErr := parseID(l[3])
		if uidErr == nil && gidErr == nil && (l[0] == user || numberErr == nil && uid == number) {
			f.user.known, f.user.uid, f.user.groups = true, uid, []uint32{gid}
			return l[0]
		}
	}
	if numberErr != nil {
		f.error(CodeNoUser, "user", "the image has no user "+shown(user), "names are looked up in its /etc/passwd", "add the user in the build, or give its number")
		return ""
	}
	f.user.known, f.user.uid, f.user.groups = true, number, []uint32{0}
	return ""
}

func (f *fit) group(group string, lines [][]string) {
	number, numberErr := parseID(group)
	for _, l := range lines {
		if len(l) < 3 {
			continue
		}
		if gid, err := parseID(l[2]); err == nil && (l[0] == group || numberErr == nil && gid == number) {
			f.user.groups = []uint32{gid}
			return
		}
	}
	if numberErr != nil {
		f.error(CodeNoGroup, "user", "the image has no group "+shown(group), "names are looked up in its /etc/group", "add the group in the build, or give its number")
		return
	}
	f.user.groups = []uint32{number}
}

// lines reads a file of colon-separated fields. One that is not there is empty; one that is not readable as
// such is an error with the given code.
func (f *fit) lines(key, code, file string) ([][]string, bool) {
	info, err := f.image.Files.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true
	}
	if err != nil || !info.Mode.IsRegular() {
		f.error(code, key, "the image's "+file+" is not a file", "users and groups are looked up in it", "")
		return nil, false
	}
	r, err := f.image.Files.Open(file)
	if err != nil {
		return nil, false // the store's to report, not the image's fault
	}
	if r.Size() > maxAccounts {
		f.error(code, key, "the image's "+file+" is longer than 8 MiB", "", "")
		return nil, false
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, false
	}
	var out [][]string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.ContainsRune("#+-", rune(line[0])) {
			out = append(out, strings.Split(line, ":"))
		}
	}
	return out, true
}

// maxID is the greatest user or group number that the guest takes.
const maxID = 1<<31 - 1

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, errors.New("not a number of a user or group")
	}
	return uint32(n), nil
}

func containsName(list, name string) bool {
	for n := range strings.SplitSeq(list, ",") {
		if n == name {
			return true
		}
	}
	return false
}

// workdir checks that nothing is in the way of the working directory, which is made when it is missing.
func (f *fit) workdir() {
	if f.image.Files == nil {
		return
	}
	dir := f.dir()
	if info, err := f.image.Files.Stat(dir); err == nil && !info.Mode.IsDir() {
		f.error(CodeBadWorkdir, "workdir", plain(dir)+" is not a directory in the image", "the process starts in it", "set workdir to a directory")
	}
}
