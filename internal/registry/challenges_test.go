package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// recorded is one challenge of testdata/challenges.txt.
type recorded struct {
	name, registry string
	ask, refuse    string // one of them
	headers        []string
}

func recordedChallenges(t *testing.T) []recorded {
	t.Helper()
	b, err := os.ReadFile("testdata/challenges.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []recorded
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "# "); ok {
			all = append(all, recorded{name: name})
		}
		if len(all) == 0 {
			continue
		}
		last := &all[len(all)-1]
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "registry":
			last.registry = value
		case "ask":
			last.ask = value
		case "refuse":
			last.refuse = value
		case "Www-Authenticate:":
			last.headers = append(last.headers, value)
		}
	}
	return all
}

// everybody's password is the same, whatever the registry.
type everybody struct{}

func (everybody) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{Username: "alice", Password: canaryPassword}), nil
}

// TestRecordedChallenges makes each of the big registries stand in a network of the test's own and pulls from
// it: the password reaches its host and its own token server, and nobody else. Where the token server is on no
// list, the error says what to set, and with that set it works.
func TestRecordedChallenges(t *testing.T) {
	all := recordedChallenges(t)
	if len(all) < 20 {
		t.Fatalf("only %d challenges", len(all))
	}
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			n := newInternet(t, map[string]string{})
			for i, h := range []string{r.registry, r.ask, r.refuse} {
				n.names[hostname(h)] = fmt.Sprintf("203.0.113.%d", i+1)
			}
			n.begin(r.serve)
			settings := "/etc/pinnace/registries.toml"
			c := n.over(newClient(t, Options{Keychain: everybody{}, Settings: settings}))
			err := withinTime(t, 20*time.Second, func(ctx context.Context) error { return r.pull(ctx, c) })
			trusted := []string{withPort(r.registry)}
			if r.ask != "" {
				trusted = append(trusted, withPort(r.ask))
				if err != nil {
					t.Errorf("got %v", err)
				}
			}
			n.judge(t, trusted...)
			if r.refuse == "" {
				if !n.saw(canaryPassword, withPort(r.ask)) {
					t.Errorf("the password did not get to %s", r.ask)
				}
				return
			}
			e, _ := errors.AsType[*Error](err)
			if want := fmt.Sprintf("set token_hosts = [%q] under [registries.%q] in %s", r.refuse, r.registry, settings); !errors.Is(err, ErrForbidden) || !strings.Contains(e.Hint, want) {
				t.Errorf("got %v, hint %q, want %q", err, e.Hint, want)
			}
			n.begin(r.serve)
			c = n.over(newClient(t, Options{Keychain: everybody{}, Hosts: map[string]Host{r.registry: {TokenHosts: []string{r.refuse}}}}))
			if err := withinTime(t, 20*time.Second, func(ctx context.Context) error { return r.pull(ctx, c) }); err != nil {
				t.Errorf("with what the hint says: %v", err)
			}
			n.judge(t, append(trusted, withPort(r.refuse))...)
		})
	}
}

func withPort(host string) string {
	if strings.Contains(host, ":") {
		return host
	}
	return host + ":443"
}

// saw says whether somebody got a secret.
func (n *internet) saw(secret, host string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.visits, func(v visit) bool {
		return v.host+":"+v.port == host && slices.Contains(v.secrets(), secret)
	})
}

// serve is a registry that sends the challenge until it is answered, and a token server everywhere else.
func (r recorded) serve(w http.ResponseWriter, req *http.Request) {
	header := req.Header.Get("Authorization")
	_, password, basic := req.BasicAuth()
	image := newEvilRegistry("", "", evilCredential{})
	switch {
	case strings.Contains(r.headers[0]+r.headers[len(r.headers)-1], "://"+req.Host+req.URL.Path) && strings.Contains(r.headers[len(r.headers)-1], "Bearer"):
		if password != canaryPassword {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":%q,"access_token":%[1]q,"expires_in":300}`, canaryIssued)
	case header == "Bearer "+canaryIssued, basic && password == canaryPassword && strings.Contains(strings.Join(r.headers, " "), "Basic "):
		image.content(w, req)
	default:
		for _, h := range r.headers {
			w.Header()[textproto.CanonicalMIMEHeaderKey("WWW-Authenticate")] = append(w.Header().Values("Www-Authenticate"), h)
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	}
}

func (r recorded) pull(ctx context.Context, c *Client) error {
	image := newEvilRegistry("", "", evilCredential{})
	if _, err := c.Resolve(ctx, r.registry+"/library/web:1"); err != nil {
		return err
	}
	b, err := readAll(c, r.registry+"/library/web", image.layer)
	if err == nil && string(b) != string(image.layer) {
		err = fmt.Errorf("got %q", b)
	}
	return err
}

func FuzzChallenges(f *testing.F) {
	b, err := os.ReadFile("testdata/challenges.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if header, ok := strings.CutPrefix(line, "Www-Authenticate: "); ok {
			f.Add(strings.TrimSpace(header))
		}
	}
	f.Add(`Bearer realm="a\"b",realm=c,,, = ,Basic`)
	f.Add("Bearer \u023a realm=x")
	f.Fuzz(func(t *testing.T, header string) {
		found := parseChallenges([]string{header})
		if len(found) > maxChallenges {
			t.Errorf("%d challenges", len(found))
		}
		all := realms(header)
		for _, c := range found {
			if c.scheme == "" || len(c.params) > maxChallenges {
				t.Errorf("%q: got %+v", header, c)
			}
			// What is answered is among what the guard looks at.
			if realm := c.params["realm"]; c.scheme == bearer && realm != "" && !slices.Contains(all, realm) {
				t.Errorf("%q: the guard does not see %q", header, realm)
			}
		}
		for _, anonymous := range []bool{false, true} {
			if c := choose(found, anonymous); c != nil && c.scheme != basic && c.scheme != bearer {
				t.Errorf("%q: chose %+v", header, c)
			}
		}
	})
}

func TestParseChallenges(t *testing.T) {
	for header, want := range map[string]string{
		`Bearer realm="https://a/t",service=gcr.io`:   `bearer realm=https://a/t service=gcr.io`,
		`Basic realm="x", Bearer realm="https://a/t"`: `basic realm=x; bearer realm=https://a/t`,
		`Negotiate, Basic realm="x"`:                  `negotiate; basic realm=x`,
		`Negotiate dG9rZW4=, Basic realm="x"`:         `negotiate; basic realm=x`,
		`bEARER Realm = "a b" , Scope="x,y"`:          `bearer realm=a b scope=x,y`,
		`Bearer realm="a\"b\\c"`:                      `bearer realm=a"b\c`,
		`Bearer realm="first",realm="second"`:         `bearer realm=first`,
		`Bearer realm="does not end, Basic realm="x`:  `bearer realm=does not end, Basic realm=; x`,
		`Bearer`: `bearer`,
		`,,, ,`:  ``,
		`="x"`:   `x`,
		``:       ``,
	} {
		var got []string
		for _, c := range parseChallenges([]string{header}) {
			s := c.scheme
			for _, key := range []string{"realm", "scope", "service"} {
				if v, ok := c.params[key]; ok {
					s += " " + key + "=" + v
				}
			}
			got = append(got, s)
		}
		if s := strings.Join(got, "; "); s != want {
			t.Errorf("%s: got %q, want %q", header, s, want)
		}
	}
}
