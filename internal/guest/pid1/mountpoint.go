//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint opens the directory that path names in the workload's root, following the image's links inside of it, and
// makes what is missing on the way, where links that dangle point to as well. real is where that is. made tells that
// the image has no such directory.
func mountPoint(root, target string) (fd int, real string, made bool, err error) {
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", false, err
	}
	defer closeFD(rootFD)
	links := 0
	fd, made, err = openDir(rootFD, path.Clean("/"+target), &links)
	if err != nil {
		return -1, "", false, err
	}
	inHost, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil {
		real = path.Clean("/" + strings.TrimPrefix(inHost, strings.TrimSuffix(root, "/")))
		err = reserved(real)
	}
	if err != nil {
		closeFD(fd)
		return -1, "", false, err
	}
	return fd, real, made, nil
}

// reserved refuses places that init or every process needs as they are: an image's link may lead there.
func reserved(real string) error {
	if real == "/" {
		return errors.New("it is the root directory, which nothing can be mounted over")
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", etcSource} {
		if real == dir || strings.HasPrefix(real, dir+"/") {
			return fmt.Errorf("it is %s in this image, and nothing can be put in %s", real, dir)
		}
	}
	return nil
}

const maxLinks = 40 // as in the kernel

// openDir is the recursive part of mountPoint. All paths are inside of root, whatever links and dots say.
func openDir(root int, name string, links *int) (fd int, made bool, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err = unix.Openat2(root, name, &how)
	switch {
	case err == nil:
		return fd, false, nil
	case errors.Is(err, unix.ENOTDIR):
		return -1, false, fmt.Errorf("the image has something else than a directory at %s, or on the way there", name)
	case !errors.Is(err, unix.ENOENT) || name == "/":
		return -1, false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	parent, _, err := openDir(root, path.Dir(name), links)
	if err != nil {
		return -1, false, err
	}
	defer closeFD(parent)
	base := path.Base(name)
	err = unix.Mkdirat(parent, base, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return followDangling(root, parent, base, links)
	}
	if err != nil {
		return -1, false, &os.PathError{Op: "make", Path: name, Err: err}
	}
	fd, err = unix.Openat(parent, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, true, nil
}

// followDangling makes the directory that a link without a target points to.
func followDangling(root, parent int, base string, links *int) (int, bool, error) {
	if *links++; *links > maxLinks {
		return -1, false, &os.PathError{Op: "follow", Path: base, Err: unix.ELOOP}
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, base, buf)
	if err != nil {
		return -1, false, &os.PathError{Op: "follow", Path: base, Err: err}
	}
	target := string(buf[:n])
	if !path.IsAbs(target) {
		// Not by the name through which the parent was found, which may have links in it itself.
		dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", parent))
		if err != nil {
			return -1, false, err
		}
		top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root))
		if err != nil {
			return -1, false, err
		}
		target = path.Join("/", strings.TrimPrefix(dir, strings.TrimSuffix(top, "/")), target)
	}
	return openDir(root, path.Clean(target), links)
}
