package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// ErrDamaged means that the file system of a volume needs a person's eyes.
var ErrDamaged = errors.New("is damaged")

// checkTimeout bounds one run of e2fsck.
const checkTimeout = 15 * time.Minute

// Check makes sure that the volume can be mounted without making things worse. One that was cut off in the middle of
// writing is as it should be: the guest's kernel replays its journal. One in which a kernel has met an error is checked
// with "e2fsck -p", which repairs what can be repaired without losing anything, as distributions do when they boot; it
// runs as uid and gid, which must be nobody else's and own the image afterwards, and sees nothing but the image. done
// says what was done, for people, and is empty when there was nothing to do.
//
// What it cannot repair is left as it is, and the error wraps ErrDamaged.
func (h *Hold) Check(ctx context.Context, uid, gid uint32) (done string, err error) {
	super, err := readSuper(h.Path())
	if errors.Is(err, errNoFileSystem) {
		return "", fmt.Errorf("volume %s %w: %w", h.ID, ErrDamaged, err)
	}
	if err != nil {
		return "", fmt.Errorf("look at volume %s: %w", h.ID, err)
	}
	if !super.damaged() {
		return "", nil
	}
	out, err := h.repair(ctx, uid, gid)
	if err != nil {
		return "", err
	}
	if super, err = readSuper(h.Path()); err != nil || super.damaged() {
		return "", fmt.Errorf("volume %s %w: e2fsck has left it so: %s", h.ID, ErrDamaged, out)
	}
	return "checked after errors: " + out, nil
}

// Bits of e2fsck's exit status that mean that all is well now: errors were corrected, and the machine should be
// restarted because the file system was its root.
const checkCorrected = 1 | 2

// checkScript bounds what a file system that was made to be expensive can take: 1 GiB of memory, 10 minutes of the
// processor. The image is descriptor 3.
const checkScript = `ulimit -v 1048576; ulimit -t 600; ulimit -c 0; exec "$0" -p /proc/self/fd/3`

func (h *Hold) repair(ctx context.Context, uid, gid uint32) (string, error) {
	fsck, err := program("e2fsck")
	if err != nil {
		return "", fmt.Errorf("check volume %s, whose file system has noted errors: %w", h.ID, err)
	}
	image, err := os.OpenFile(h.Path(), os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("check volume %s: %w", h.ID, err)
	}
	defer image.Close()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", checkScript, fsck)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}, []*os.File{image}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		// The program opens the file by name, with the rights of its identity.
		if err := image.Chown(int(uid), int(gid)); err != nil {
			return "", fmt.Errorf("check volume %s: %w", h.ID, err)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID
	}
	out, err := cmd.CombinedOutput()
	exit, failed := errors.AsType[*exec.ExitError](err)
	said := printable(string(out))
	switch {
	case err == nil, failed && exit.ExitCode() > 0 && exit.ExitCode()&^checkCorrected == 0:
		return said, nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("check volume %s: %w", h.ID, context.Cause(ctx))
	}
	return "", fmt.Errorf("volume %s %w, and cannot be repaired without a decision: copy %s, and run e2fsck on the copy; e2fsck -p said: %s (%w)",
		h.ID, ErrDamaged, h.Path(), said, err)
}

// printable is what of a program's output goes into a message: the guest's part in it must not drive a terminal.
func printable(out string) string {
	out = strings.ToValidUTF8(out, "?")
	out = strings.Join(strings.FieldsFunc(out, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }), " ")
	const most = 300
	if len(out) > most {
		out = strings.ToValidUTF8(out[:most], "") + "…"
	}
	return out
}
