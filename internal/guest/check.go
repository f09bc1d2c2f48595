package guest

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// checker is a message whose fields have bounds. check refuses what can't be right and cuts texts meant for people.
type checker interface{ check() error }

func (h *Hello) check() error {
	if !validNonce(h.Nonce) {
		return errors.New("the nonce is not 32 hex digits")
	}
	if h.MemTotalBytes < 0 {
		return errors.New("negative memory")
	}
	h.Init, h.Kernel, h.Token = text(h.Init, maxName), text(h.Kernel, maxName), text(h.Token, maxName)
	if len(h.Can) > maxMarks {
		return fmt.Errorf("%d abilities, at most %d are allowed", len(h.Can), maxMarks)
	}
	for i := range h.Can {
		h.Can[i] = text(h.Can[i], maxName)
	}
	return checkMarks(h.Marks)
}

func (s *Started) check() error {
	if s.PID <= 0 {
		return fmt.Errorf("process id %d", s.PID)
	}
	return checkMarks(s.Marks)
}

func (f *Failed) check() error {
	f.Stage, f.Error, f.Errno = text(f.Stage, maxName), text(f.Error, maxText), text(f.Errno, maxName)
	if err := checkCode(f.Code); err != nil {
		return err
	}
	return checkMarks(f.Marks)
}

func (e *Exit) check() error {
	e.Signal, e.Error = text(e.Signal, maxName), text(e.Error, maxText)
	if e.Victim != nil {
		if e.Victim.PID <= 0 {
			return fmt.Errorf("the OOM killer chose process %d", e.Victim.PID)
		}
		e.Victim.Name = text(e.Victim.Name, maxName)
	}
	return checkCode(e.Code)
}

func (r *ExecResult) check() error {
	r.Error = text(r.Error, maxText)
	if len(r.Output) > MaxExecOutput {
		return fmt.Errorf("%d bytes of output, at most %d are allowed", len(r.Output), MaxExecOutput)
	}
	return checkCode(r.Code)
}

func (b *Bundled) check() error {
	b.Name, b.Error = text(b.Name, maxName), text(b.Error, maxText)
	if b.Name == "" {
		return errors.New("an answer for no bundle")
	}
	return nil
}

func (f *Frozen) check() error {
	f.Volume, f.Error = text(f.Volume, maxName), text(f.Error, maxText)
	if f.Volume == "" {
		return errors.New("an answer for no volume")
	}
	return nil
}

// check is the guest's: the keys become names of files.
func (b *Bundle) check() error { return CheckSecrets(b.Values) }

// CheckSecrets says what keeps values from being a bundle's: a key that can't be one, or too much of them.
func CheckSecrets(values SecretValues) error {
	bytes := 0
	for key, value := range values {
		if !validKey(key) {
			return fmt.Errorf("%q cannot be the key of a secret", text(key, maxName))
		}
		bytes += len(key) + len(value)
	}
	if len(values) > MaxBundleKeys || bytes > MaxBundleBytes {
		return fmt.Errorf("a bundle of %d keys and %d bytes, at most %d and %d are allowed", len(values), bytes, MaxBundleKeys, MaxBundleBytes)
	}
	return nil
}

// validKey tells whether a secret can have that key: [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}.
func validKey(key string) bool {
	for i, c := range []byte(key) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case (c == '.' || c == '-') && i > 0:
		default:
			return false
		}
	}
	return key != "" && len(key) <= MaxSecretKey
}

func (l *Line) check() error {
	switch {
	case l.Seq == 0:
		return errors.New("a line without a number")
	case l.Stream != StreamStdout && l.Stream != StreamStderr:
		return errors.New("a line of neither stdout nor stderr")
	case len(l.Data) > MaxLine:
		return fmt.Errorf("a line of %d bytes, at most %d are allowed", len(l.Data), MaxLine)
	}
	return nil
}

func (r *Resumed) check() error {
	r.Token = text(r.Token, maxName)
	if r.Next == 0 {
		return errors.New("lines that begin with number 0")
	}
	return nil
}

// checkCode keeps a guest from making a status that no process can have, such as one that wraps to 0.
func checkCode(code int) error {
	if code < 0 || code > 255 {
		return fmt.Errorf("exit status %d", code)
	}
	return nil
}

func checkMarks(marks []Mark) error {
	if len(marks) > maxMarks {
		return fmt.Errorf("%d marks, at most %d are allowed", len(marks), maxMarks)
	}
	for i := range marks {
		marks[i].Name = text(marks[i].Name, maxName)
	}
	return nil
}

func validNonce(s string) bool {
	if len(s) != 32 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// text makes a string from a guest fit to be shown: at most n bytes, no control characters (which could drive a
// terminal), valid UTF-8.
func text(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	s = strings.ToValidUTF8(s, "?")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, s)
}
