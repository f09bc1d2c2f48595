package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// The kinds of failure that callers tell apart, with errors.Is.
var (
	ErrReference    = errors.New("not an image reference")              // nothing was asked of any registry
	ErrNotFound     = errors.New("not in the registry")                 // the repository, tag or blob
	ErrUnauthorized = errors.New("refused by the registry")             // the credentials, or their absence
	ErrUnreachable  = errors.New("registry is unreachable")             // or down, or overloaded; may pass
	ErrTLS          = errors.New("no secure connection to registry")    // certificate, or no TLS at all
	ErrNotAnImage   = errors.New("not a container image")               // an archive, an artifact, a compose file
	ErrNoPlatform   = errors.New("no image for a supported platform")   // other architectures or systems only
	ErrWrongContent = errors.New("registry sent wrong content")         // bytes that don't match their digest or size, or broken documents
	ErrForbidden    = errors.New("registry asked for something unsafe") // a redirect or token server that is not allowed
)

// Error says what went wrong in words for the person who wrote the reference. Its text has the cause; Hint
// is what to do about it, to be shown on a line of its own.
type Error struct {
	Kind     error  // one of the Err… values
	Registry string // host, or host:port; empty when the reference has none
	Message  string
	Hint     string // may be empty
	Err      error  // the cause, may be nil; its text is shown after the message
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Registry != "" {
		b.WriteString("registry " + e.Registry + ": ")
	}
	b.WriteString(e.Message)
	if e.Err != nil {
		b.WriteString(": " + printable(e.Err.Error()))
	}
	return b.String()
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// explain turns what the HTTP layers say into an Error. what names the thing that was asked for: "tag 2 of
// shop/web"; credential is what was sent, empty for none.
func explain(err error, repo name.Repository, what, credential string) error {
	host := repo.RegistryStr()
	if known, ok := errors.AsType[*Error](err); ok {
		return known
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("registry %s: get %s: %w", host, what, err)
	}
	if answer, ok := errors.AsType[*transport.Error](err); ok && !badCertificate(err) { // after a bad certificate, plain HTTP may have been tried
		return explainAnswer(answer, repo, what, credential)
	}
	e := &Error{Registry: host, Err: shortest(err)}
	switch {
	case errors.Is(err, errPlainHTTP):
		e.Kind, e.Err = ErrTLS, err
		e.Message = "it does not answer over TLS, and plain HTTP is only for loopback addresses unless you allow it"
		e.Hint = "give the registry a certificate, or allow plain HTTP for " + host
	case isTLS(err):
		e.Kind, e.Message = ErrTLS, "cannot make a secure connection"
		e.Hint = "check the registry's certificate and that this machine trusts it; a registry without TLS must be allowed by name"
	case errors.As(err, new(*net.DNSError)):
		e.Kind, e.Message = ErrUnreachable, "there is no such host"
		e.Hint = "check the spelling of " + host + ", and this machine's DNS"
	default:
		e.Kind, e.Message = ErrUnreachable, "cannot be reached"
		e.Hint = "check that the registry runs and that this machine reaches " + host
	}
	return e
}

// explainAnswer is for registries that answered, but with an error.
func explainAnswer(answer *transport.Error, repo name.Repository, what, credential string) error {
	e := &Error{Registry: repo.RegistryStr()}
	switch code := answer.StatusCode; code {
	case http.StatusNotFound:
		e.Kind, e.Message = ErrNotFound, "has no "+what
		e.Hint = "check the spelling of the repository and the tag, and that the push to this registry ended well"
		if hasCode(answer, transport.NameUnknownErrorCode) {
			e.Message = "has no repository " + repo.RepositoryStr()
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = ErrUnauthorized
		if credential == "" {
			e.Message = fmt.Sprintf("refuses to give %s to someone without credentials; it is private, or does not exist", what)
			e.Hint = "docker login " + repo.RegistryStr()
		} else {
			e.Message = fmt.Sprintf("refuses to give %s for the credentials that were sent, %s", what, credential)
			e.Hint = "check that this user may read " + repo.RepositoryStr() + ", or docker login " + repo.RegistryStr() + " as another"
		}
	case http.StatusTooManyRequests:
		e.Kind, e.Message = ErrUnreachable, "allows no more requests for now"
		e.Hint = "wait, or docker login for a higher limit"
	default:
		e.Kind, e.Message = ErrUnreachable, fmt.Sprintf("answers %d %s when asked for %s", code, http.StatusText(code), what)
		e.Hint = "look at the registry's own log"
	}
	if said := diagnosis(answer); said != "" {
		e.Err = errors.New(said)
	}
	return e
}

// explainRefusedPush is for a registry that may be read and not written.
func explainRefusedPush(err error, repo name.Repository, what, credential string) error {
	e := &Error{Kind: ErrUnauthorized, Registry: repo.RegistryStr(), Message: "refuses to take " + what + " from someone without credentials"}
	if credential != "" {
		e.Message = "refuses to take " + what + " for the credentials that were sent, " + credential
	}
	e.Hint = "docker login " + repo.RegistryStr() + " as a user who may push to " + repo.RepositoryStr()
	if known, ok := errors.AsType[*Error](err); ok {
		e.Err = known.Err
	}
	return e
}

// diagnosis is what the registry says about its error, if it says it in the form of the specification.
func diagnosis(answer *transport.Error) string {
	for _, d := range answer.Errors {
		if d.Code != "" {
			return "it says " + printable(strings.TrimSuffix(string(d.Code)+": "+d.Message, ": "))
		}
	}
	return ""
}

func hasCode(answer *transport.Error, code transport.ErrorCode) bool {
	for _, d := range answer.Errors {
		if d.Code == code {
			return true
		}
	}
	return false
}

func badCertificate(err error) bool {
	return errors.As(err, new(x509.UnknownAuthorityError)) ||
		errors.As(err, new(x509.HostnameError)) ||
		errors.As(err, new(x509.CertificateInvalidError)) ||
		errors.As(err, new(*tls.CertificateVerificationError))
}

func isTLS(err error) bool {
	return badCertificate(err) || errors.Is(err, http.ErrSchemeMismatch) ||
		errors.As(err, new(tls.RecordHeaderError)) ||
		errors.As(err, new(tls.AlertError))
}

// shortest drops the layers around a network error that repeat the URL.
func shortest(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	return err
}

// printable makes text from outside fit for a terminal: one line, no control characters, not long.
func printable(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
