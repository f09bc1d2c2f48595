// Package sandbox runs a part of this program in a process of its own that can only compute: it reads and
// writes the files that it is given, already open, and nothing else. Code that parses what strangers made
// belongs there, so that a fault in it is a fault of that process and not of the host.
//
// The process is this same binary. It gives everything up before its part begins:
//
//   - its identity: as root, for an id that owns nothing; otherwise in a user namespace of its own;
//   - its capabilities, all of them, for good, and the way back by set-id programs (no_new_privs);
//   - the view of others: namespaces for processes, mounts, network, IPC and host name, and a root directory
//     that is empty and removed already;
//   - descriptors, core dumps, and files longer than they may become, by limits;
//   - system calls: a filter leaves those that Go needs to compute, and read and write for what is open. There
//     is no open, no socket, no exec, no fork, no signal to others, and no memory that can be run.
//
// Where the kernel refuses namespaces, as in some containers, the rest remains; without the filter nothing
// is run at all. How much memory the process takes is watched by the one that started it, and bounded by the
// kernel somewhat above that.
//
// The package knows nothing of what the part does, which is said over the connection to it.
package sandbox
