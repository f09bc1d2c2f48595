// Package firecrackertest has a stand-in for Firecracker and its jailer: processes that take the same arguments, speak
// the same API over the same sockets and refuse what the real ones refuse, but run no guest. What a guest's software
// does is played by functions of the test. It is imported by tests only.
//
// A test program is the stand-in too: its TestMain calls Main first, and Install gives names to the program by which
// Main knows what it is. The played guest is chosen by the first line of the initramfs, "guest NAME"; a real initramfs plays
// RealInit, so that the whole of Pinnace can run on the stand-in.
//
// With root, a machine is really confined: the process changes its root directory and its identity, so that files and
// sockets have to be where and whose they are to be. There is no seccomp filter, no mount namespace and no KVM.
package firecrackertest
