package fleet

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func sealedAs(digit byte) string { return "sha256:" + strings.Repeat(string([]byte{digit}), 64) }

// put is version number of a bundle.
func put(bundle string, version uint64, keys ...string) *SecretPut {
	return &SecretPut{Environment: "dev", Bundle: bundle, Version: version, Keys: keys, Sealed: sealedAs('0' + byte(version%10)), Recipient: "age1x"}
}

func withSecrets(d *DeploymentStarted, kind Kind, version uint64) *DeploymentStarted {
	d.Kind, d.Secrets = kind, map[string]uint64{"api": version}
	return d
}

func TestSecretsOfDeployments(t *testing.T) {
	l := newTeller(t)
	one := testRelease(t, "api", "80", 1, `secrets.api = { env = ["A"] }`, "")
	l.tell(&EnvironmentCreated{Name: "dev"}, testHost, one)
	l.refused(deploy("dep-1", one, ""), "names other secret bundles")
	l.refused(withSecrets(deploy("dep-1", one, ""), KindDeploy, 1), "version 1 of secret bundle api of dev: not found")
	l.tell(put("api", 1, "A"), put("api", 2, "A", "B"))
	l.refused(withSecrets(deploy("dep-1", one, ""), KindDeploy, 3), "version 3 of secret bundle api")
	extra := withSecrets(deploy("dep-1", one, ""), KindDeploy, 1)
	extra.Secrets["other"] = 1
	l.refused(extra, "secret bundle other")
	l.tell(withSecrets(deploy("dep-1", one, ""), KindDeploy, 1), start("dep-1", "api-1", one))
	var used *SecretInUseError
	if err := l.refused(&SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{1}}, "is what api has"); !errors.As(err, &used) || used.Deployment != "dep-1" {
		t.Error(err)
	}
	l.tell(succeeded("dep-1"))
	if got := l.state.Deployment("dep-1").Secrets["api"]; got != 1 {
		t.Errorf("it has version %d", got)
	}

	// In place: the instances become those of the new deployment.
	wrong := withSecrets(deploy("dep-2", one, "dep-1"), KindSecrets, 2)
	wrong.Count = 2
	l.refused(wrong, "for what is live as it is")
	scale := withSecrets(deploy("dep-2", one, "dep-1"), KindScale, 2)
	l.refused(scale, "a scale does not change secrets")
	l.tell(withSecrets(deploy("dep-2", one, "dep-1"), KindSecrets, 2), succeeded("dep-2"))
	if i := l.state.Instance("api-1"); i.Deployment != "dep-2" || l.state.App("dev", "api").Live != "dep-2" {
		t.Errorf("the instance is of %s", i.Deployment)
	}

	// What nothing has can be revoked, and then nothing gets it.
	l.tell(&SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{1}})
	var gone *SecretRevokedError
	back := withSecrets(deploy("dep-3", one, "dep-2"), KindRollback, 1)
	if err := l.refused(back, "was revoked by admin on 2030-01-01"); !errors.As(err, &gone) {
		t.Error(err)
	}
	b := l.state.Bundle("dev", "api")
	if b.Newest().Version != 2 || b.Version(1).RevokedAt.IsZero() || b.Version(3) != nil || b.Version(0) != nil || !b.Newest().Has("B") || b.Newest().Has("C") {
		t.Errorf("got %+v", b)
	}
}

func TestSecretRefusals(t *testing.T) {
	l := newTeller(t)
	l.tell(&EnvironmentCreated{Name: "dev"})
	l.refused(put("API", 1, "A"), "bundle name")
	l.refused(put("api", 1), "0 keys")
	l.refused(put("api", 1, "B", "A"), "not sorted")
	l.refused(put("api", 1, "A", "A"), "comes twice")
	l.refused(put("api", 1, ".A"), "the key")
	l.refused(put("api", 1, strings.Repeat("A", 129)), "the key")
	l.refused(put("api", 2, "A"), "the next one is 1")
	elsewhere := put("api", 1, "A")
	elsewhere.Environment = "prod"
	l.refused(elsewhere, "environment prod")
	unsealed := put("api", 1, "A")
	unsealed.Sealed = "values"
	l.refused(unsealed, "where it is sealed")
	l.refused(&SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{1}}, "not found")
	l.tell(put("api", 1, "A"))
	if err := l.refused(put("api", 1, "A"), "changed in the meantime"); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	l.refused(&SecretRevoked{Environment: "dev", Bundle: "api"}, "0 versions")
	l.refused(&SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{1, 1}}, "not found")
	l.tell(&SecretRevoked{Environment: "dev", Bundle: "api", Versions: []uint64{1}})
	if l.state.Bundle("dev", "api").Newest() != nil {
		t.Error("a revoked version is the newest")
	}
	for v := uint64(2); v < MaxVersions+2; v++ {
		l.tell(put("api", v, "A"))
	}
	l.refused(put("api", MaxVersions+2, "A"), "no more are kept")
}

func TestLogins(t *testing.T) {
	l := newTeller(t)
	login := func(env, registry, user string) *RegistryLoggedIn {
		return &RegistryLoggedIn{Environment: env, Registry: registry, Username: user, Sealed: sealedAs('a'), Recipient: "age1x"}
	}
	l.tell(&EnvironmentCreated{Name: "dev"}, &EnvironmentCreated{Name: "prod"})
	l.tell(login("", "registry.example", "all"), login("dev", "registry.example", "dev"), login("prod", "registry.example:5000", "prod"))
	for _, bad := range []string{"", "https://registry.example", "registry.example/shop", "Registry.example", "user@registry.example", "registry.example:0"} {
		l.refused(login("dev", bad, "u"), "want host or host:port")
	}
	l.refused(login("dev", "registry.example", "a:b"), "user name")
	l.refused(login("none", "registry.example", "u"), "environment none")
	if got := l.state.Login("dev", "registry.example").Username; got != "dev" {
		t.Errorf("dev pulls as %s", got)
	}
	if got := l.state.Login("prod", "registry.example").Username; got != "all" {
		t.Errorf("prod pulls as %s", got)
	}
	if l.state.Login("dev", "registry.example:5000") != nil {
		t.Error("a login of another environment, or of another port, was found")
	}
	if n := len(l.state.Logins("dev")); n != 2 {
		t.Errorf("dev has %d logins, want its own and that of all", n)
	}
	l.tell(&RegistryLoggedOut{Environment: "dev", Registry: "registry.example"})
	if got := l.state.Login("dev", "registry.example").Username; got != "all" {
		t.Errorf("after logging out dev pulls as %s", got)
	}
	l.refused(&RegistryLoggedOut{Environment: "dev", Registry: "registry.example"}, "not found")
}

func TestRoutes(t *testing.T) {
	l := newTeller(t)
	sni := `ports.tls = { port = 8443, expose = "public" }`
	api, web, raw := testRelease(t, "api", "80", 1, sni, ""), testRelease(t, "web", "81", 2, sni, ""), testRelease(t, "raw", "443", 3)
	l.tell(&EnvironmentCreated{Name: "dev"}, &EnvironmentCreated{Name: "prod"}, testHost, api, web, raw)
	route := func(env, app, port string, names ...string) *RouteSet {
		return &RouteSet{Environment: env, App: app, Port: port, Names: names}
	}
	var none *NoRouteError
	if err := l.refused(deploy("dep-1", api, ""), "no host name"); !errors.As(err, &none) || none.PortName != "tls" {
		t.Error(err)
	}
	l.tell(route("dev", "api", "tls", "*.api.example", "api.example"), deploy("dep-1", api, ""), succeeded("dep-1"))

	// Host names are there once in all environments, deployed or not; one port is shared by them.
	var held *PortConflictError
	if err := l.refused(route("prod", "api", "tls", "api.example"), "host name api.example is held by app api in environment dev"); !errors.As(err, &held) {
		t.Error(err)
	}
	l.refused(route("dev", "web", "tls", "api.example"), "is held by app api")
	l.tell(route("dev", "web", "tls", "web.example"), deploy("dep-2", web, ""), succeeded("dep-2"))
	l.refused(deploy("dep-3", raw, ""), "public port 443 (tcp) is held by app api")

	// A route makes room, and is refused where there is none.
	l.tell(&RouteSet{Environment: "dev", App: "raw", Port: "web", PublicPort: 8443}, deploy("dep-3", raw, ""), succeeded("dep-3"))
	l.refused(&RouteUnset{Environment: "dev", App: "raw", Port: "web"}, "public port 443 (tcp) is held by app api")
	l.refused(&RouteSet{Environment: "dev", App: "web", Port: "web", PublicPort: 80}, "public port 80 (tcp) is held by app api")
	l.refused(&RouteSet{Environment: "dev", App: "web", Port: "tls", Address: "192.0.2.1", Names: []string{"web.example"}}, "public port 443 (tcp)")
	l.refused(&RouteSet{Environment: "dev", App: "api", Port: "web", PublicPort: 443}, "held by app api")
	l.tell(&RouteSet{Environment: "dev", App: "web", Port: "tls", Address: "192.0.2.1", PublicPort: 444, Names: []string{"web.example"}})
	l.tell(&RouteSet{Environment: "dev", App: "api", Port: "web", Address: "192.0.2.1"}, &RouteSet{Environment: "dev", App: "web", Port: "web", Address: "192.0.2.2", PublicPort: 80})
	l.refused(&RouteUnset{Environment: "dev", App: "api", Port: "tls"}, "no host name")
	l.refused(&RouteUnset{Environment: "dev", App: "api", Port: "other"}, "not found")

	for _, tt := range []struct {
		route *RouteSet
		want  string
	}{
		{&RouteSet{App: "api", Port: "web"}, "says nothing"},
		{&RouteSet{App: "API", Port: "web", PublicPort: 1}, "app name"},
		{&RouteSet{App: "api", Port: "Web", PublicPort: 1}, "port name"},
		{&RouteSet{App: "api", Port: "web", PublicPort: 65536}, "not within"},
		{&RouteSet{App: "api", Port: "web", Address: "localhost"}, "is not an IPv4"},
		{&RouteSet{App: "api", Port: "web", Address: "fe80::1%eth0"}, "is not an IPv4"},
		{&RouteSet{App: "api", Port: "web", Address: "2001:DB8::1"}, "usual form"},
		{&RouteSet{App: "api", Port: "tls", Names: []string{"API.example"}}, "not a host name"},
		{&RouteSet{App: "api", Port: "tls", Names: []string{"192.0.2.1"}}, "not a host name"},
		{&RouteSet{App: "api", Port: "tls", Names: []string{"a.*.example"}}, "not a host name"},
		{&RouteSet{App: "api", Port: "tls", Names: []string{"b.example", "a.example"}}, "not sorted"},
	} {
		tt.route.Environment = "dev"
		l.refused(tt.route, tt.want)
	}
	e := l.state.Endpoints("dev", l.state.Release(l.state.Deployment("dep-2").Release))
	if len(e) != 2 || e[0].Name != "tls" || e[0].PublicPort != 444 || !slices.Equal(e[0].Names, []string{"web.example"}) || e[1].Address != "192.0.2.2" {
		t.Errorf("got %+v", e)
	}
}
