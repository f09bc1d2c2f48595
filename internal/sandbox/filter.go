package sandbox

import (
	"os"
	"slices"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// always are the calls that the process may make whatever their arguments are: memory, threads and time for
// Go's runtime, and what reads and writes an open file or waits for one. Some have no number on some
// architectures.
var always = []string{
	"read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "close", "fstat", "recvmsg", "shutdown",
	"munmap", "madvise", "mincore",
	"futex", "sched_yield", "sched_getaffinity", "nanosleep", "clock_nanosleep", "clock_gettime", "gettimeofday", "getrandom",
	"getpid", "gettid", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "restart_syscall",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2",
	"exit", "exit_group",
}

// cloneOther are flags of clone(2) for what is more than a thread.
const cloneOther = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_PTRACE

// prSetVMA is the prctl(2) by which Go's runtime names its memory.
const prSetVMA = 0x53564d41

// policy is an allow-list; all else fails with EPERM, which Go code turns into an error or a crash.
func policy() seccomp.Policy {
	with := func(name string, conditions ...seccomp.Condition) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: conditions}
	}
	arg := func(n uint32, op seccomp.Operation, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: n, Operation: op, Value: value}
	}
	group := seccomp.SyscallGroup{
		Action: seccomp.ActionAllow,
		NamesWithCondtions: []seccomp.NameWithConditions{
			with("clone", arg(0, seccomp.BitsSet, unix.CLONE_THREAD), arg(0, seccomp.BitsNotSet, cloneOther)),
			with("mmap", arg(2, seccomp.BitsNotSet, unix.PROT_EXEC)),
			with("mprotect", arg(2, seccomp.BitsNotSet, unix.PROT_EXEC)),
			// To its own threads, for the runtime to interrupt them.
			with("tgkill", arg(0, seccomp.Equal, uint64(os.Getpid()))),
			with("fcntl", arg(1, seccomp.Equal, unix.F_GETFL)),
			with("fcntl", arg(1, seccomp.Equal, unix.F_SETFL)),
			with("fcntl", arg(1, seccomp.Equal, unix.F_GETFD)),
			with("fcntl", arg(1, seccomp.Equal, unix.F_SETFD)),
			with("prctl", arg(0, seccomp.Equal, prSetVMA)),
		},
	}
	info, err := arch.GetInfo("")
	group.Names = slices.Clone(always)
	if err == nil {
		group.Names = slices.DeleteFunc(group.Names, func(name string) bool {
			_, known := info.SyscallNames[name]
			return !known
		})
	}
	return seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{group}}
}
