//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// etcSource holds the generated files; they are bind-mounted over the image's, so that nothing of the image changes
// and what a package does to its own /etc/hosts goes wrong loudly, as in Docker.
const etcSource = "/run/pinnace"

// BindEtc generates /etc/hostname, /etc/hosts and /etc/resolv.conf.
func (b *Boot) BindEtc() error {
	if err := makeDir(etcSource); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", etcSource, "tmpfs", flags, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount %s: %w", etcSource, err)
	}
	for name, content := range etcFiles(b.config.Hostname, b.config.Network) {
		source := filepath.Join(etcSource, name)
		if err := os.WriteFile(source, []byte(content), 0o644); err != nil { //nolint:gosec // every user reads /etc/hosts
			return err
		}
		if err := bindFile(source, "/etc/"+name); err != nil {
			return fmt.Errorf("put /etc/%s in place: %w", name, err)
		}
	}
	return nil
}

// etcFiles returns the content of each file. resolv.conf is made with name servers only; without them the image's
// stays.
func etcFiles(hostname string, n *guest.Network) map[string]string {
	files := map[string]string{"hostname": hostname + "\n"}
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if n == nil {
		fmt.Fprintf(&hosts, "127.0.1.1\t%s\n", hostname)
		files["hosts"] = hosts.String()
		return files
	}
	for _, a := range n.Addresses {
		if p, err := netip.ParsePrefix(a); err == nil {
			fmt.Fprintf(&hosts, "%s\t%s\n", p.Addr(), hostname)
		}
	}
	for _, h := range n.Hosts {
		fmt.Fprintf(&hosts, "%s\t%s\n", h.Address, strings.Join(h.Names, " "))
	}
	files["hosts"] = hosts.String()
	if len(n.DNS) == 0 {
		return files
	}
	var resolv strings.Builder
	if len(n.Search) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(n.Search, " "))
	}
	for _, s := range n.DNS {
		fmt.Fprintf(&resolv, "nameserver %s\n", s)
	}
	files["resolv.conf"] = resolv.String()
	return files
}

// bindFile mounts the file source over target, wherever links of the image take target to, and makes what is missing
// on the way: images have dangling links there, such as one to systemd-resolved's file. A link to where nothing can
// be made (in a circle, into /proc) gives way to a file; the image's own layer still has it.
func bindFile(source, target string) error {
	end, err := placeFor(target)
	if err != nil {
		if _, notLink := os.Readlink(target); notLink != nil {
			return err
		}
		logf(logInfo, "%s leads nowhere, a file takes its place: %v", target, err)
		if err := os.Remove(target); err != nil {
			return err
		}
		if end, err = placeFor(target); err != nil {
			return err
		}
	}
	target = end
	// Even now that the root is the workload's, resolving in it costs nothing and keeps magic links out.
	fd, err := unix.Openat2(unix.AT_FDCWD, target, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer closeFD(fd)
	mount, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", source, err)
	}
	defer closeFD(mount)
	return unix.MoveMount(mount, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// placeFor makes sure of a file where links of the image take path to, and returns its own path.
func placeFor(path string) (string, error) {
	target, err := followLinks(path)
	if err != nil {
		return "", err
	}
	if err := makeDir(filepath.Dir(target)); err != nil {
		return "", err
	}
	const create = os.O_CREATE | os.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW
	made, err := os.OpenFile(target, create, 0o644) //nolint:gosec // every user reads what is mounted here
	if err != nil {
		return "", err
	}
	return target, made.Close()
}

// followLinks returns where path leads: itself when there is nothing or no link, and the end of the chain otherwise,
// which need not exist.
func followLinks(path string) (string, error) {
	const maxLinks = 40 // as in the kernel
	for range maxLinks {
		target, err := os.Readlink(path)
		if err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
				return path, nil
			}
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return "", &os.PathError{Op: "follow", Path: path, Err: unix.ELOOP}
}
