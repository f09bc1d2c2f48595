package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/pinnacehq/pinnace/internal/registry"
)

// registriesFile is one registries.toml. There can be two: the system's in /etc/pinnace and the user's.
type registriesFile struct {
	Registries map[string]registryEntry `toml:"registries"`
}

// registryEntry is how one registry is spoken to. docs/operate/registries.md is written from this.
type registryEntry struct {
	Mirrors    []mirrorName `toml:"mirrors"`
	CA         filePath     `toml:"ca"`
	ClientCert filePath     `toml:"client_cert"`
	ClientKey  filePath     `toml:"client_key"`
	PlainHTTP  bool         `toml:"plain_http"`
	TokenHosts []tokenHost  `toml:"token_hosts"`
}

// registryKeys are the keys of an entry, for messages.
const registryKeys = "mirrors, ca, client_cert, client_key, plain_http, token_hosts"

// Values with a type of their own are checked while the file is decoded, which then knows their line. The
// decoder does not ask types that are strings themselves.
type (
	mirrorName struct{ name string }
	tokenHost  struct{ name string }
	filePath   struct{ path string }
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *mirrorName) UnmarshalText(b []byte) error {
	m.name = string(b)
	return registry.CheckMirror(string(b))
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *tokenHost) UnmarshalText(b []byte) error {
	h.name = string(b)
	return registry.CheckHost(string(b))
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *filePath) UnmarshalText(b []byte) error {
	p.path = string(b)
	if !filepath.IsAbs(string(b)) {
		return fmt.Errorf("%q is not an absolute path", printable(string(b)))
	}
	return nil
}

// configDir is where the system's configuration is.
func (c *cli) configDir() string {
	if dir := c.getenv("PINNACE_CONFIG_DIR"); dir != "" {
		return dir
	}
	return "/etc/pinnace"
}

// registriesFiles are the files that say how registries are spoken to, the system's first. The second is
// missing for users without a home.
func (c *cli) registriesFiles() []string {
	files := []string{filepath.Join(c.configDir(), "registries.toml")}
	if path, err := c.configPath(); err == nil {
		files = append(files, filepath.Join(filepath.Dir(path), "registries.toml"))
	}
	return files
}

// registryHosts reads both files. What the user's says of a registry replaces what the system's says of it.
func (c *cli) registryHosts() (map[string]registry.Host, error) {
	hosts := map[string]registry.Host{}
	for _, path := range c.registriesFiles() {
		file, err := readRegistries(path)
		if err != nil {
			return nil, err
		}
		for name, entry := range file.Registries {
			host, err := entry.host()
			if err != nil {
				return nil, fail(exitInvalid, registriesHint, "%s: [registries.%q]: %w", path, printable(name), err)
			}
			hosts[name] = host
		}
	}
	return hosts, nil
}

const registriesHint = "docs/operate/registries.md has a sample of it, with all keys"

// registryOptions are those of a client with the credentials of the user who runs the program. notice hears of
// mirrors that are passed over.
func (c *cli) registryOptions(agent string, notice func(string)) (registry.Options, error) {
	hosts, err := c.registryHosts()
	return registry.Options{
		UserAgent: agent + "/" + version, Hosts: hosts, Settings: c.registriesFiles()[0], Notice: notice,
	}, err
}

// registryClient is the client of commands that people run.
func (c *cli) registryClient() (*registry.Client, error) {
	o, err := c.registryOptions("pinnace", c.note)
	if err != nil {
		return nil, err
	}
	return registry.New(o), nil
}

// unmirroredClient asks registries themselves, for who wants to know what they have.
func (c *cli) unmirroredClient() (*registry.Client, error) {
	o, err := c.registryOptions("pinnace", c.note)
	if err != nil {
		return nil, err
	}
	for name, host := range o.Hosts {
		host.Mirrors = nil
		o.Hosts[name] = host
	}
	return registry.New(o), nil
}

func (c *cli) note(message string) { c.say("note: %s", message) }

// readRegistries reads one file; one that is not there is empty.
func readRegistries(path string) (registriesFile, error) {
	b, err := readSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return registriesFile{}, nil
	}
	if err != nil {
		return registriesFile{}, fail(exitInvalid, "", "read the registries' configuration: %w", err)
	}
	var file registriesFile
	err = toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&file)
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		first := unknown.Errors[0]
		line, column := first.Position()
		what := "a table [registries.\"HOST\"] for each registry"
		if key := first.Key(); len(key) > 2 {
			what = registryKeys
		}
		return registriesFile{}, fail(exitInvalid, registriesHint, "%s:%d:%d: there is no key %q here, only %s",
			path, line, column, printable(strings.Join(first.Key(), ".")), what)
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := wrong.Position()
		return registriesFile{}, fail(exitInvalid, registriesHint, "%s:%d:%d: %s",
			path, line, column, printable(strings.TrimPrefix(wrong.Error(), "toml: ")))
	}
	if err != nil {
		return registriesFile{}, fail(exitInvalid, registriesHint, "%s: %w", path, err)
	}
	for name := range file.Registries {
		if err := registry.CheckHost(name); err != nil {
			return registriesFile{}, fail(exitInvalid, registriesHint, "%s:%d: [registries.%q]: %w", path, lineOf(b, name), printable(name), err)
		}
	}
	return file, nil
}

// lineOf is the line that names a key of a table, for the few errors that the decoder has no position of.
func lineOf(b []byte, key string) int {
	at := bytes.Index(b, []byte(key))
	return 1 + bytes.Count(b[:max(at, 0)], []byte("\n"))
}

// host loads the certificates that an entry names.
func (e registryEntry) host() (registry.Host, error) {
	h := registry.Host{PlainHTTP: e.PlainHTTP}
	for _, m := range e.Mirrors {
		h.Mirrors = append(h.Mirrors, m.name)
	}
	for _, t := range e.TokenHosts {
		h.TokenHosts = append(h.TokenHosts, t.name)
	}
	switch {
	case e.PlainHTTP && (e.CA.path != "" || e.ClientCert.path != ""):
		return h, errors.New("plain_http has no use for certificates; remove one or the other")
	case (e.ClientCert.path == "") != (e.ClientKey.path == ""):
		return h, errors.New("client_cert and client_key go together")
	}
	if e.CA.path != "" {
		pem, err := readSmall(e.CA.path)
		if err != nil {
			return h, fmt.Errorf("ca: %w", err)
		}
		h.RootCAs = x509.NewCertPool()
		if !h.RootCAs.AppendCertsFromPEM(pem) {
			return h, fmt.Errorf("ca: %s has no certificate in PEM form", e.CA.path)
		}
	}
	if e.ClientCert.path == "" {
		return h, nil
	}
	cert, certErr := readSmall(e.ClientCert.path)
	key, keyErr := readSmall(e.ClientKey.path)
	if err := errors.Join(certErr, keyErr); err != nil {
		return h, fmt.Errorf("client_cert, client_key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return h, fmt.Errorf("client_cert %s, client_key %s: %w", e.ClientCert.path, e.ClientKey.path, err)
	}
	h.ClientCertificate = &pair
	return h, nil
}

// readSmall reads a file of configuration.
func readSmall(path string) ([]byte, error) {
	const most = 1 << 20
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return b, err
}

// examineRegistries says whether the files that say how registries are spoken to can be used.
func (c *cli) examineRegistries() finding {
	f := finding{Name: "registries", Needed: true}
	hosts, err := c.registryHosts()
	if err != nil {
		_, message, hint := describe(err)
		f.Detail, f.Fix = message, hint
		return f
	}
	f.OK, f.Detail = true, "no settings of their own"
	if len(hosts) > 0 {
		names := make([]string, 0, len(hosts))
		for name := range hosts {
			names = append(names, name)
		}
		slices.Sort(names)
		f.Detail = "settings for " + strings.Join(names, ", ")
	}
	return f
}
