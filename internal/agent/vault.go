package agent

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
)

// A vault keeps the secrets of this host's instances for the next agent, which may have to start one again while the
// server is away: sealed, in a directory that is memory, under a key that only the kernel has, in root's own keyring.
// All three are gone with the host's next boot; then the agent waits for the server. Where there is no such directory
// or no such key, nothing is kept, and the next agent waits in the same way.
type vault struct {
	dir string
	key func() ([]byte, error) // 32 bytes, the same in every process of this boot
	// in tells whether a directory is in memory.
	in func(dir string) bool
}

const (
	vaultName   = "secrets"
	vaultSuffix = ".sealed"
)

// newVault is the vault of the agent that owns runDir.
func newVault(runDir string) *vault {
	return &vault{dir: filepath.Join(runDir, vaultName), key: func() ([]byte, error) { return keyringKey(keyName(runDir)) }, in: inMemory}
}

// keyName is the name of an agent's key: each agent of a user has its own.
func keyName(runDir string) string { return fmt.Sprintf("pinnace:%x", sha256.Sum256([]byte(runDir))) }

// errNoVault means that nothing can be kept here.
var errNoVault = errors.New("secrets are not kept for the next agent")

// put seals the bundles of an instance. They take the place of those that were there.
func (v *vault) put(instance string, bundles []*pinnacev1.AssignedSecret) error {
	if len(bundles) == 0 {
		return v.remove(instance)
	}
	if err := durable.MkdirAll(v.dir, 0o700); err != nil {
		return err
	}
	if !v.in(v.dir) {
		return fmt.Errorf("%w: %s is not in memory", errNoVault, v.dir)
	}
	seal, err := v.seal()
	if err != nil {
		return err
	}
	open, err := proto.Marshal(&pinnacev1.Assignment{Instance: instance, Secrets: bundles})
	if err != nil {
		return err
	}
	nonce := make([]byte, seal.NonceSize(), seal.NonceSize()+len(open)+seal.Overhead())
	_, _ = rand.Read(nonce) // documented never to fail
	return durable.WriteFile(v.path(instance), seal.Seal(nonce, nonce, open, []byte(instance)), 0o600)
}

// get returns the bundles of an instance; none when none are kept. What can't be opened was kept under another key.
func (v *vault) get(instance string) ([]*pinnacev1.AssignedSecret, error) {
	sealed, err := os.ReadFile(v.path(instance))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	seal, err := v.seal()
	if err != nil {
		return nil, err
	}
	if len(sealed) < seal.NonceSize() {
		return nil, fmt.Errorf("%s is cut short", v.path(instance))
	}
	open, err := seal.Open(nil, sealed[:seal.NonceSize()], sealed[seal.NonceSize():], []byte(instance))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", v.path(instance), err)
	}
	var kept pinnacev1.Assignment
	if err := proto.Unmarshal(open, &kept); err != nil {
		return nil, errors.New("what was sealed makes no sense") // its text could have secrets in it
	}
	return kept.Secrets, nil
}

func (v *vault) remove(instance string) error {
	if err := os.Remove(v.path(instance)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeIf removes what is kept of instances that are not wanted.
func (v *vault) removeIf(unwanted func(instance string) bool) error {
	entries, err := os.ReadDir(v.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), vaultSuffix); ok && unwanted(id) {
			err = errors.Join(err, v.remove(id))
		}
	}
	return err
}

func (v *vault) path(instance string) string { return filepath.Join(v.dir, instance+vaultSuffix) }

func (v *vault) seal() (cipher.AEAD, error) {
	key, err := v.key()
	if err != nil {
		return nil, fmt.Errorf("%w: there is no key: %w", errNoVault, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// inMemory tells whether what is in dir is on no disk. It may be swapped out, sealed.
func inMemory(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
}

const keyBytes = 32

// keyringKey is the key of that name in the keyring that all processes of the caller's user share. It is made when there
// is none, and no process can read it that is not of that user.
func keyringKey(name string) ([]byte, error) {
	// Keyrings are found by way of those that the calling thread has.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Sessions of systemd's services don't have the user's in theirs, and what a thread can't find it may not read.
	if _, err := unix.KeyctlInt(unix.KEYCTL_LINK, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_THREAD_KEYRING, 0, 0); err != nil {
		return nil, fmt.Errorf("use the keyring of this user: %w", err)
	}
	id, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", name, 0)
	if errors.Is(err, unix.ENOKEY) {
		fresh := make([]byte, keyBytes)
		_, _ = rand.Read(fresh) // documented never to fail
		id, err = unix.AddKey("user", name, fresh, unix.KEY_SPEC_USER_KEYRING)
	}
	if err != nil {
		return nil, fmt.Errorf("find or make a key in the keyring of this user: %w", err)
	}
	key := make([]byte, keyBytes+1)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, key, 0)
	if err != nil {
		return nil, fmt.Errorf("read a key of the keyring of this user: %w", err)
	}
	if n != keyBytes {
		return nil, fmt.Errorf("the key %s in the keyring of this user has %d bytes", name, n)
	}
	return key[:keyBytes], nil
}
