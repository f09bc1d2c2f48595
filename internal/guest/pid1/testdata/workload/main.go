// Command workload is what the end-to-end tests of PID 1 run in a VM: each sub-command looks at one thing that a
// container image may expect, or behaves badly in one way.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "workload: no sub-command")
		os.Exit(64)
	}
	switch arg := os.Args[1]; arg {
	case "facts":
		facts()
	case "place":
		place()
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "kill-self":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute)
	case "serve":
		serve()
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "whoami":
		fmt.Println(os.Getuid(), os.Getgid(), os.Getenv("HOME"))
	case "now":
		fmt.Println(time.Now().UnixNano())
	case "eat":
		eat()
	case "thrash":
		thrash()
	case "lines":
		n, _ := strconv.Atoi(os.Args[2])
		for i := range n {
			fmt.Println("line", i)
		}
	case "fill":
		fill(os.Args[2])
	case "orphans":
		orphans()
	case "child":
		time.Sleep(50 * time.Millisecond)
	case "attack":
		attack()
	case "look":
		look(os.Args[2:])
	case "keep":
		keep(os.Args[2], os.Args[3])
	case "touch":
		if err := os.WriteFile(os.Args[2], []byte("x"), 0o644); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "refused":
		refused(os.Args[2], os.Args[3])
	case "watch":
		watch(os.Args[2], os.Args[3])
	case "fill-until-error":
		fillUntilError(os.Args[2])
	case "terminal":
		terminal()
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "two":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
		os.Exit(42)
	case "yes":
		for b := bytes.Repeat([]byte("y\n"), 8<<10); ; {
			if _, err := os.Stdout.Write(b); err != nil {
				os.Exit(1)
			}
		}
	case "leave":
		leave()
	case "processes":
		processes()
	case "wait-hup":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGHUP)
		fmt.Println("ready")
		<-c
		os.WriteFile("/tmp/hup", nil, 0o644)
	case "stat":
		if _, err := os.Stat(os.Args[2]); err != nil {
			os.Exit(1)
		}
	case "signal-init":
		n, _ := strconv.Atoi(os.Args[2])
		if err := syscall.Kill(1, syscall.Signal(n)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "workload: unknown sub-command", arg)
		os.Exit(64)
	}
}

// facts prints what the process finds, as one line of JSON.
func facts() {
	f := map[string]any{
		"uid": os.Getuid(), "gid": os.Getgid(), "args": os.Args, "env": os.Environ(), "pid": os.Getpid(),
	}
	groups, _ := os.Getgroups()
	sort.Ints(groups)
	f["groups"] = groups
	f["cwd"], _ = os.Getwd()
	f["hostname"], _ = os.Hostname()
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_CORE, &limit)
	f["core"] = limit.Cur
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	f["umask"] = fmt.Sprintf("%04o", umask)
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "SigBlk", "SigIgn":
			f[k] = strings.TrimSpace(v)
		}
	}
	for _, p := range []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc/self/cgroup", "/proc/self/oom_score_adj", "/proc/self/limits", "/proc/self/mounts"} {
		b, err := os.ReadFile(p)
		if err != nil {
			b = []byte(err.Error())
		}
		f[p] = string(b)
	}
	for _, p := range []string{"/dev/fd", "/dev/stdout", "/dev/ptmx", "/dev/shm", "/dev/pts", "/dev/mqueue", "/tmp", "/run", "/run/app", "/proc", "/sys/fs/cgroup"} {
		if info, err := os.Stat(p); err == nil {
			f["mode "+p] = info.Mode().String()
		} else {
			f["mode "+p] = err.Error()
		}
	}
	_, err := os.OpenFile("/dev/stderr", os.O_WRONLY, 0)
	f["reopen stderr"] = err == nil
	var st syscall.Statfs_t
	syscall.Statfs("/", &st)
	f["root bytes"] = int64(st.Blocks) * st.Bsize
	var addrs []string
	as, _ := net.InterfaceAddrs()
	for _, a := range as {
		if !strings.HasPrefix(a.String(), "fe80:") { // which comes a while later
			addrs = append(addrs, a.String())
		}
	}
	f["addresses"] = addrs
	routes, _ := os.ReadFile("/proc/net/route")
	f["routes"] = string(routes)
	routes6, _ := os.ReadFile("/proc/net/ipv6_route")
	f["routes6"] = string(routes6)
	f["now"] = time.Now().Unix()
	os.WriteFile("/written", []byte("x"), 0o644)
	os.Rename("/etc/dir", "/etc/renamed")
	_, err = os.Stat("/etc/renamed/file")
	f["rename"] = err == nil
	init, _ := os.ReadFile("/proc/1/status")
	for _, line := range strings.Split(string(init), "\n") {
		if k, v, _ := strings.Cut(line, ":"); k == "VmHWM" || k == "VmRSS" || k == "Threads" {
			f["init "+k] = strings.TrimSpace(v)
		}
	}
	b, _ := json.Marshal(f)
	fmt.Println(string(b))
}

// serve says ready, and ends with 42 on SIGTERM and 43 on SIGUSR1.
func serve() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1)
	fmt.Println("ready")
	fmt.Print("no newline")
	s := <-c
	fmt.Fprintln(os.Stderr, "bye")
	if s == syscall.SIGUSR1 {
		os.Exit(43)
	}
	os.Exit(42)
}

func eat() {
	var all [][]byte
	for {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = byte(i)
		}
		all = append(all, b)
	}
}

// held is memory that the garbage collector must leave alone, and sum a use of what is read, so that it is read.
var (
	held [][]byte
	sum  byte
)

// thrash leaves its program less memory than it is long, and reads all of it again and again.
func thrash() {
	limit := number("/sys/fs/cgroup/workload/memory.max")
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	info, err := program.Stat()
	if err != nil {
		panic(err)
	}
	text, err := syscall.Mmap(int(program.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	for limit-number("/sys/fs/cgroup/workload/memory.current")+cached() > 768<<10 {
		b := make([]byte, 64<<10)
		for i := range b {
			b[i] = byte(i)
		}
		held = append(held, b)
	}
	fmt.Println("full")
	for {
		for i := 0; i < len(text); i += 4096 {
			sum += text[i]
		}
	}
}

// cached is what the kernel could drop of the workload's memory.
func cached() int {
	src, err := os.ReadFile("/sys/fs/cgroup/workload/memory.stat")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(src)) {
		if n, ok := strings.CutPrefix(line, "file "); ok {
			bytes, _ := strconv.Atoi(strings.TrimSpace(n))
			return bytes
		}
	}
	return 0
}

func number(path string) int {
	src, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(src)))
	if err != nil {
		panic(err)
	}
	return n
}

// fill writes until the disk is full.
func fill(path string) {
	f, err := os.Create(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	b := make([]byte, 1<<20)
	total := 0
	for {
		n, err := f.Write(b)
		total += n
		if err != nil {
			fmt.Println(total>>20, err)
			os.Exit(0)
		}
	}
}

// orphans starts children that start children, and does not wait for any.
func orphans() {
	self, _ := os.Executable()
	for range 50 {
		if _, err := syscall.ForkExec(self, []string{self, "child"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	time.Sleep(300 * time.Millisecond)
	fmt.Println("done")
}

// attack sends every signal to PID 1.
func attack() {
	for n := syscall.Signal(1); n < 65; n++ {
		switch n {
		case syscall.SIGINT, syscall.SIGTERM, syscall.SIGPWR:
			continue // ask for an orderly end, which is fair
		}
		syscall.Kill(1, n)
	}
	time.Sleep(200 * time.Millisecond)
	fmt.Println("still here")
}

// terminal says what its stdin is and how large, and again when that changes. It ends with the input, with what it has
// read.
func terminal() {
	size := func() {
		var s struct{ rows, cols, x, y uint16 }
		syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&s)))
		name, _ := os.Readlink("/proc/self/fd/0")
		var st syscall.Stat_t
		syscall.Fstat(0, &st)
		_, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		fmt.Println(name, s.rows, s.cols, "owner", st.Uid, "tty", err == nil, os.Getenv("TERM"), os.Getenv("HOME"), os.Getenv("EXTRA"))
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGWINCH)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT)
	size()
	go func() {
		for {
			select {
			case <-c:
				size()
			case <-interrupted:
				fmt.Println("interrupted")
			}
		}
	}()
	read, _ := io.ReadAll(os.Stdin)
	fmt.Printf("read %q\n", read)
}

// leave starts a process that is nobody's any more and holds on to stdout.
func leave() {
	self, _ := os.Executable()
	pid, err := syscall.ForkExec(self, []string{self, "stubborn"}, &syscall.ProcAttr{
		Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	fmt.Println("left", pid, err)
}

// processes counts those that run this program's stubborn or yes.
func processes() {
	n := 0
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		line, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		args := strings.Split(string(line), "\x00")
		if len(args) > 1 && (args[1] == "stubborn" || args[1] == "yes" || args[1] == "terminal") {
			n++
		}
	}
	boxes, _ := os.ReadDir("/sys/fs/cgroup/workload")
	for _, b := range boxes {
		if b.IsDir() {
			n += 100
		}
	}
	fmt.Println(n)
}
