package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
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

// ErrMirror is in errors that were a mirror's fault alone, which is not asked for the same again: another try
// can succeed at once.
var ErrMirror = errors.New("mirror sent wrong content")

// mirrorError is such an error.
type mirrorError struct{ error }

func (m mirrorError) Unwrap() error        { return m.error }
func (m mirrorError) Is(target error) bool { return target == ErrMirror }

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
func (c *Client) explain(ctx context.Context, err error, repo name.Repository, what, credential string) error {
	host := repo.RegistryStr()
	if errors.Is(err, ErrMirror) {
		return err
	}
	if known, ok := errors.AsType[*Error](err); ok {
		if known.Registry == "" && errors.Is(known.Kind, ErrForbidden) {
			named := *known // the dialer does not know for whom it works
			named.Registry = host
			return &named
		}
		return known
	}
	if ctx.Err() != nil {
		if errors.Is(context.Cause(ctx), errTooLong) {
			return &Error{
				Kind: ErrUnreachable, Registry: host, Message: "takes too long for " + what,
				Hint: "try again when the registry, or the line to it, is faster",
			}
		}
		return fmt.Errorf("registry %s: get %s: %w", host, what, context.Cause(ctx))
	}
	if answer, ok := errors.AsType[*transport.Error](err); ok && !badCertificate(err) { // after a bad certificate, plain HTTP may have been tried
		return c.explainAnswer(answer, repo, what, credential)
	}
	e := &Error{Registry: host, Err: shortest(err)}
	switch {
	case errors.Is(err, errPlainHTTP):
		e.Kind, e.Err = ErrTLS, nil
		e.Message = "it does not answer over TLS, and plain HTTP is only for loopback addresses unless you allow it"
		e.Hint = "give the registry a certificate, or " + c.setting(host, "plain_http = true")
	case isPlainAnswer(err):
		e.Kind, e.Err, e.Message = ErrTLS, nil, "it answers in plain HTTP, not over TLS"
		e.Hint = "give the registry a certificate; if the network to it is trusted, " + c.setting(host, "plain_http = true")
	case errors.As(err, new(x509.UnknownAuthorityError)):
		e.Kind, e.Message, e.Err = ErrTLS, "its certificate is from an authority that this machine does not trust", lastCause(err)
		e.Hint = "if it is your own, " + c.setting(host, `ca = "/path/to/ca.pem"`)
	case errors.As(err, new(x509.HostnameError)):
		e.Kind, e.Message, e.Err = ErrTLS, "its certificate is for another name", lastCause(err)
		e.Hint = "use the name that the certificate has, or get one for " + host
	case isTLS(err), errors.Is(err, errNoCertificate):
		e.Kind, e.Message = ErrTLS, "cannot make a secure connection"
		if errors.Is(err, errNoCertificate) {
			e.Err = errNoCertificate
		}
		e.Hint = "check the registry's certificate; when it wants one from its clients, " + c.setting(host, `client_cert = "/path/to/cert.pem" and client_key = "/path/to/key.pem"`)
	case errors.As(err, new(*net.DNSError)):
		e.Kind, e.Message = ErrUnreachable, "there is no such host"
		e.Hint = "check the spelling of " + host + ", and this machine's DNS"
		if elsewhere := failedHost(err); elsewhere != "" && !strings.EqualFold(elsewhere, hostname(host)) {
			e.Message = "it leads to " + elsewhere + ", and there is no such host"
			e.Hint = "look at the registry's settings, and this machine's DNS"
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Kind, e.Message = ErrUnreachable, "nothing listens there"
		e.Hint = "check that the registry runs, and the port: " + host
	default:
		e.Kind, e.Message = ErrUnreachable, "cannot be reached"
		e.Hint = "check that the registry runs and that this machine reaches " + host
	}
	return e
}

// explainAnswer is for registries that answered, but with an error.
func (c *Client) explainAnswer(answer *transport.Error, repo name.Repository, what, credential string) error {
	host := repo.RegistryStr()
	e := &Error{Registry: host}
	asked := what
	if answer.Request != nil && !sameHost(answer.Request.URL, host) {
		asked = "the token server " + printable(answer.Request.URL.Host)
		if isBlob(answer.Request) && origin(answer.Request) != answer.Request {
			asked = printable(answer.Request.URL.Host) + ", where the registry sends for " + what
		}
	}
	switch code := answer.StatusCode; code {
	case http.StatusNotFound:
		e.Kind, e.Message = ErrNotFound, "has no "+what
		e.Hint = "check the spelling of the repository and the tag, and that the push to this registry ended well"
		if hasCode(answer, transport.NameUnknownErrorCode) {
			e.Message = "has no repository " + repo.RepositoryStr()
		}
		if asked != what {
			e.Kind, e.Message, e.Hint = ErrUnreachable, asked+": answers 404 Not Found", "look at the registry's own log"
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = ErrUnauthorized
		if credential == "" {
			e.Message = fmt.Sprintf("refuses to give %s to someone without credentials; it is private, or does not exist", what)
			e.Hint = "check the spelling, or docker login " + host
		} else {
			e.Message = fmt.Sprintf("refuses to give %s for the credentials that were sent, %s", what, credential)
			e.Hint = "check that this user may read " + repo.RepositoryStr() + ", or docker login " + host + " as another"
		}
	case http.StatusTooManyRequests:
		e.Kind, e.Message = ErrUnreachable, "allows no more requests for now"
		e.Hint = "wait, or docker login " + host + " for a higher limit"
	default:
		e.Kind, e.Message = ErrUnreachable, fmt.Sprintf("answers %d %s when asked for %s", code, http.StatusText(code), asked)
		e.Hint = "look at the registry's own log"
		if code == http.StatusBadRequest && answer.Request != nil && answer.Request.URL.Scheme == "http" {
			e.Hint = "it may speak TLS only: remove plain_http under [registries." + fmt.Sprintf("%q", host) + "] in " + c.options.Settings + ", if it is there"
		}
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
		errors.As(err, new(tls.AlertError)) || isAlert(err)
}

// errNoCertificate is for a host that asked for a certificate, got none and hung up.
var errNoCertificate = errors.New("it asked for a client certificate and then ended the connection")

// isAlert says whether the other side ended TLS: it may want a certificate, or another version.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// isPlainAnswer says whether a server answered TLS in plain HTTP.
func isPlainAnswer(err error) bool {
	record, ok := errors.AsType[tls.RecordHeaderError](err)
	return errors.Is(err, http.ErrSchemeMismatch) || ok && string(record.RecordHeader[:]) == "HTTP/"
}

// failedHost is the host that a request was for which failed.
func failedHost(err error) string {
	if e, ok := errors.AsType[*url.Error](err); ok {
		if u, err := url.Parse(e.URL); err == nil {
			return printable(u.Hostname())
		}
	}
	return ""
}

// lastCause is the innermost error.
func lastCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// shortest drops the layers around a network error that repeat the URL.
func shortest(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
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
