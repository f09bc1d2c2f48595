package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
)

// A Manager makes and removes the networks of one host. Its methods may be called concurrently.
type Manager struct{}

var errNotYet = errors.New("not built yet")

// New takes RunDir over, together with the environments that a Manager before left in it: they are there to
// be used again or removed. Half-made ones are repaired by EnsureEnvironment.
func New(Options) (*Manager, error) { return nil, errNotYet }

// Close lets go of RunDir and leaves everything in place, for the next Manager to adopt.
func (m *Manager) Close() error { return errNotYet }

// CleanUp removes everything that this Manager, or one before it in the same RunDir, has made, and gives the
// host its settings back.
func (m *Manager) CleanUp(context.Context) error { return errNotYet }

// Environments lists the environments that exist, sorted.
func (m *Manager) Environments() []string { return nil }

// Attachments lists the guests of env, sorted by instance.
func (m *Manager) Attachments(string) ([]Attachment, error) { return nil, errNotYet }

// EnsureEnvironment makes the network of env, or repairs it, and returns it.
func (m *Manager) EnsureEnvironment(context.Context, string) (*Namespace, error) {
	return nil, errNotYet
}

// RemoveEnvironment removes the network of env with all its attachments. Removing what is not there succeeds.
func (m *Manager) RemoveEnvironment(context.Context, string) error { return errNotYet }

// Attach makes the tap and the addresses of instance in env, which must exist. Attaching again returns the
// same attachment.
func (m *Manager) Attach(_ context.Context, _, _ string, _ uint32) (*Attachment, error) {
	return nil, errNotYet
}

// Detach removes the tap of instance; its address is not given out again soon.
func (m *Manager) Detach(_ context.Context, _, _ string) error { return errNotYet }

// OpenTap opens the tap of instance inside its namespace, for a VMM that is passed the descriptor.
func (m *Manager) OpenTap(_ context.Context, _, _ string) (*os.File, error) { return nil, errNotYet }

// SetVirtualAddresses makes exactly addrs local addresses of env, so that a proxy can listen on them there.
func (m *Manager) SetVirtualAddresses(context.Context, string, []netip.Addr) error { return errNotYet }
