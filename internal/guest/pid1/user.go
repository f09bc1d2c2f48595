//go:build linux

package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// user is what a process runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // supplementary groups, gid included
	home     string
}

const (
	maxUserFile = 8 << 20  // of /etc/passwd and /etc/group: far above the largest real ones
	maxUserLine = 64 << 10 // a group with some thousand members
	maxID       = 1<<31 - 1
	maxGroups   = 65536 // NGROUPS_MAX
)

// ResolveUser finds the user of the workload.
func (b *Boot) ResolveUser() (err error) {
	b.user, err = lookUpUser(b.config.Process.User)
	return err
}

// lookUpUser finds a user in the image's own files.
func lookUpUser(spec string) (user, error) {
	passwd, err := openUserFile("/etc/passwd")
	if err != nil {
		return user{}, err
	}
	defer passwd.Close()
	group, err := openUserFile("/etc/group")
	if err != nil {
		return user{}, err
	}
	defer group.Close()
	return resolveUser(spec, passwd, group)
}

// openUserFile opens a file that an image may lack, or have as something that must not be read.
func openUserFile(path string) (io.ReadCloser, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("the image's %s is not a file", path)
	}
	return f, nil
}

// resolveUser follows Docker's rules for "user[:group]":
//
//   - each part is a name or a number; a name has to be in its file, a number needn't be; what can be a number is
//     one, even where the file has it as a name;
//   - without a user it is 0;
//   - without a group it is the user's from passwd, or 0 when passwd doesn't know the user;
//   - the supplementary groups are those of which group says that the user is a member, by name; there are none when a
//     group is given;
//   - the home directory is that of passwd, or "/".
func resolveUser(spec string, passwd, group io.Reader) (user, error) {
	userPart, groupPart, _ := strings.Cut(spec, ":")
	if userPart == "" {
		userPart = "0"
	}
	u := user{home: "/"}
	name, err := u.fromPasswd(userPart, passwd)
	if err != nil {
		return user{}, err
	}
	if groupPart != "" {
		err = u.groupFrom(groupPart, group)
	} else {
		err = u.memberships(name, group)
	}
	if err != nil {
		return user{}, err
	}
	if !slices.Contains(u.groups, u.gid) {
		u.groups = append([]uint32{u.gid}, u.groups...)
	}
	return u, nil
}

// fromPasswd sets uid, gid and home, and returns the user's name when passwd has it. The first line that fits wins.
func (u *user) fromPasswd(want string, passwd io.Reader) (string, error) {
	number, numberErr := parseID(want)
	var name string
	found, err := scanColons(passwd, func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		uid, uidErr := parseID(f[2])
		gid, gidErr := parseID(f[3])
		if uidErr != nil || gidErr != nil {
			return false
		}
		if numberErr == nil && uid != number || numberErr != nil && f[0] != want {
			return false
		}
		name, u.uid, u.gid = f[0], uid, gid
		if len(f) > 5 && f[5] != "" {
			u.home = f[5]
		}
		return true
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("read the image's /etc/passwd: %w", err)
	case found:
		return name, nil
	case numberErr != nil:
		return "", fmt.Errorf("the image has no user %q: it is not in its /etc/passwd", want)
	}
	u.uid = number
	return "", nil
}

// groupFrom sets gid.
func (u *user) groupFrom(want string, group io.Reader) error {
	number, numberErr := parseID(want)
	found, err := scanColons(group, func(f []string) bool {
		if len(f) < 3 {
			return false
		}
		gid, err := parseID(f[2])
		if err != nil || numberErr == nil && gid != number || numberErr != nil && f[0] != want {
			return false
		}
		u.gid = gid
		return true
	})
	switch {
	case err != nil:
		return fmt.Errorf("read the image's /etc/group: %w", err)
	case found:
		return nil
	case numberErr != nil:
		return fmt.Errorf("the image has no group %q: it is not in its /etc/group", want)
	}
	u.gid = number
	return nil
}

// memberships sets groups.
func (u *user) memberships(name string, group io.Reader) error {
	if name == "" {
		return nil
	}
	seen := map[uint32]bool{}
	_, err := scanColons(group, func(f []string) bool {
		if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), name) {
			return false
		}
		if gid, err := parseID(f[2]); err == nil && !seen[gid] && len(u.groups) < maxGroups-1 {
			seen[gid] = true
			u.groups = append(u.groups, gid)
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("read the image's /etc/group: %w", err)
	}
	return nil
}

// scanColons calls use with the fields of each line until it returns true, and says whether it did. Comments, empty
// lines and the "+" lines of NIS are skipped. A file or line beyond its cap is an error: half of it could name the
// wrong user.
func scanColons(r io.Reader, use func(fields []string) bool) (bool, error) {
	limited := &io.LimitedReader{R: r, N: maxUserFile + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 4<<10), maxUserLine)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == '+' || line[0] == '-' {
			continue
		}
		if use(strings.Split(line, ":")) {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	if limited.N == 0 {
		return false, fmt.Errorf("it is longer than %d bytes", maxUserFile)
	}
	return false, nil
}

// parseID reads a user or group number.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", s, maxID)
	}
	return uint32(n), nil
}
