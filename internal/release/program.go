package release

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// defaultPath is where programs are looked for when neither image nor manifest says so.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command checks that a program can be started, as the guest will do it. key is where the manifest would name
// another one.
func (f *fit) command(key, name string) {
	if f.image.Files == nil {
		return
	}
	file, info, ok := f.find(name)
	switch {
	case !ok && strings.Contains(name, "/"):
		f.error(CodeNoCommand, key, "the image has no "+plain(file), "", "check the spelling, and what the build copies into the image")
	case !ok:
		f.error(CodeNoCommand, key, "the image has no program "+shown(name)+" in its PATH", "PATH is "+plain(f.path()),
			"give the absolute path, or check what the build copies into the image")
	case info.Mode.IsDir():
		f.error(CodeNotExecutable, key, plain(file)+" is a directory", "", "name a program")
	case !f.executable(info):
		f.error(CodeNotExecutable, key, plain(file)+" cannot be executed by user "+f.user.shown(), "its mode is "+info.Mode.String(), "chmod +x it in the build")
	default:
		f.program(key, file)
	}
}

// find looks a program up. Without one it gives the last place that it looked at; one that is there and
// cannot be executed is given when there is no other.
func (f *fit) find(name string) (file string, info FileInfo, ok bool) {
	dir := f.dir()
	places := []string{"."}
	if !strings.Contains(name, "/") {
		places = strings.Split(f.path(), ":")
	}
	for _, place := range places {
		at := name
		if !strings.HasPrefix(name, "/") {
			at = path.Join(absolute(dir, place), name)
		}
		i, err := f.image.Files.Stat(at)
		if err != nil {
			if !ok {
				file = at
			}
			continue
		}
		if i.Mode.IsRegular() && f.executable(i) {
			return at, i, true
		}
		if !ok {
			file, info, ok = at, i, true
		}
	}
	return file, info, ok
}

func absolute(dir, place string) string {
	if strings.HasPrefix(place, "/") {
		return place
	}
	return path.Join(dir, place)
}

// dir is the working directory of the process.
func (f *fit) dir() string {
	for _, d := range []string{f.m.Workdir, f.image.WorkingDir} {
		if d != "" {
			return path.Join("/", d)
		}
	}
	return "/"
}

func (f *fit) path() string {
	if p, ok := f.m.Env["PATH"]; ok {
		return p
	}
	p := defaultPath
	for _, e := range f.image.Env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			p = value
		}
	}
	return p
}

// executable goes by the mode, as the guest does.
func (f *fit) executable(i FileInfo) bool {
	if !i.Mode.IsRegular() {
		return false
	}
	bits := i.Mode.Perm() & 0o111
	switch {
	case !f.user.known:
		// Whose bits count is not known; that there is no such user is said elsewhere.
	case f.user.uid == 0:
	case f.user.uid == i.UID:
		bits &= 0o100
	case slices.Contains(f.user.groups, i.GID):
		bits &= 0o010
	default:
		bits &= 0o001
	}
	return bits != 0
}

// program looks at what kind of program a file is, and at what it takes to run it.
func (f *fit) program(key, file string) {
	r, err := f.image.Files.Open(file)
	if err != nil {
		return // what cannot be read is the store's to report, not the image's fault
	}
	head := make([]byte, 512)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("#!")):
		f.script(key, file, head)
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		f.binary(key, file, r, head)
	default:
		f.error(CodeOtherMachine, key, plain(file)+" is neither a Linux program nor a script with a #! line", "", "begin a script with #!/bin/sh")
	}
}

// script checks the interpreter that a #! line names.
func (f *fit) script(key, file string, head []byte) {
	line, _, _ := bytes.Cut(head[2:], []byte("\n"))
	words := strings.Fields(string(line))
	if len(words) == 0 {
		f.error(CodeNoInterpreter, key, plain(file)+" has a #! line that names nothing", "", "begin it with #!/bin/sh")
		return
	}
	if bytes.HasSuffix(line, []byte("\r")) {
		f.error(CodeNoInterpreter, key, plain(file)+" has Windows line endings", `the kernel looks for an interpreter whose name ends with a carriage return`, "convert it to Unix line endings (LF)")
		return
	}
	if i, err := f.image.Files.Stat(absolute(f.dir(), words[0])); err != nil || !f.executable(i) {
		f.error(CodeNoInterpreter, key, plain(file)+" needs "+plain(words[0])+", which the image does not have", "its first line names it", "install it in the image, or run the script with another one")
		return
	}
	if path.Base(words[0]) == "env" && len(words) == 2 && !strings.HasPrefix(words[1], "-") {
		if _, _, ok := f.find(words[1]); !ok {
			f.error(CodeNoInterpreter, key, plain(file)+" needs "+plain(words[1])+", which is not in the image's PATH", "its first line names it", "install it in the image")
		}
	}
}

// machines are the architectures as ELF numbers them.
var machines = map[string]uint16{"amd64": 62, "arm64": 183}

// binary checks architecture and dynamic loader of an ELF file. Its numbers are not trusted: everything is
// read at places that are checked against its size.
func (f *fit) binary(key, file string, r *io.SectionReader, head []byte) {
	const class64, littleEndian = 2, 1
	want, known := machines[f.image.Architecture]
	if len(head) < 64 || head[4] != class64 || head[5] != littleEndian {
		return // 32-bit programs may run, too; the kernel decides
	}
	if machine := binary.LittleEndian.Uint16(head[18:]); known && machine != want {
		f.error(CodeOtherMachine, key, plain(file)+" is not for "+f.image.Architecture, "it is "+machineName(machine),
			"build it for "+f.image.Architecture+", or take "+f.image.Architecture+" out of arch")
		return
	}
	loader := interpreter(r, head)
	if loader == "" {
		return
	}
	if _, err := f.image.Files.Stat(absolute("/", loader)); errors.Is(err, fs.ErrNotExist) {
		f.error(CodeNoInterpreter, key, plain(file)+" needs the loader "+plain(loader)+", which the image does not have",
			"it is linked dynamically against a C library that the image has not", "build it statically, or on the same base image")
	}
}

func machineName(machine uint16) string {
	for name, number := range machines {
		if number == machine {
			return "for " + name
		}
	}
	return "for another one"
}

// interpreter finds the dynamic loader of a 64-bit little-endian ELF file; "" for none.
func interpreter(r *io.SectionReader, head []byte) string {
	const loaderSegment, entry, most = 3, 56, 64
	le := binary.LittleEndian
	at, size, count := le.Uint64(head[32:]), le.Uint16(head[54:]), le.Uint16(head[56:])
	if size != entry || count > most || at > uint64(r.Size()) {
		return ""
	}
	table := make([]byte, int(count)*entry)
	if _, err := r.ReadAt(table, int64(at)); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	for ; len(table) >= entry; table = table[entry:] {
		if le.Uint32(table) != loaderSegment {
			continue
		}
		offset, length := le.Uint64(table[8:]), le.Uint64(table[32:])
		if length == 0 || length > 4096 || offset > uint64(r.Size()) {
			return ""
		}
		name := make([]byte, length)
		if _, err := r.ReadAt(name, int64(offset)); err != nil {
			return ""
		}
		text, _, _ := strings.Cut(string(name), "\x00")
		return text
	}
	return ""
}
