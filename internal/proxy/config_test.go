package proxy

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

const goodConfig = `{"revision":3,"listeners":[{"id":"web","netns":"/run/ns/dev","address":"10.101.0.1:80","protocol":"tcp",` +
	`"backends":[{"id":"a","netns":"/run/ns/dev","address":"10.100.0.2:8080","state":"active"}],"max_conns":5}],` +
	`"dns":[{"netns":"/run/ns/dev","addresses":["10.100.0.1:53","[fd00::1]:53"],` +
	`"records":{"web.internal":["10.101.0.1","fd00::2"]},"reverse":["10.100.0.0/15"],"forward":true}]}`

func TestConfigRoundTrip(t *testing.T) {
	c, err := ParseConfig([]byte(strings.Replace(goodConfig, `{"revision"`, `{"from_the_future":1,"revision"`, 1)))
	check(t, err)
	b, err := json.Marshal(c)
	check(t, err)
	if string(b) != goodConfig {
		t.Errorf("got  %s\nwant %s", b, goodConfig)
	}
}

func TestBadConfigsAreRefused(t *testing.T) {
	good := func() *Config {
		c, err := ParseConfig([]byte(goodConfig))
		check(t, err)
		return c
	}
	for want, spoil := range map[string]func(c *Config){
		"id is used twice": func(c *Config) {
			c.Listeners = append(c.Listeners, Listener{ID: "web", Address: netip.MustParseAddrPort("1.2.3.4:5")})
		},
		"also the address":                    func(c *Config) { l := c.Listeners[0]; l.ID = "two"; c.Listeners = append(c.Listeners, l) },
		"id has 0 bytes":                      func(c *Config) { c.Listeners[0].ID = "" },
		"absolute path":                       func(c *Config) { c.Listeners[0].Netns = "dev" },
		`protocol "sctp"`:                     func(c *Config) { c.Listeners[0].Protocol = "sctp" },
		"negative":                            func(c *Config) { c.Listeners[0].MaxConns = -1 },
		"no port":                             func(c *Config) { c.Listeners[0].Address = netip.MustParseAddrPort("10.0.0.1:0") },
		"written as IPv4":                     func(c *Config) { c.Listeners[0].Address = netip.MustParseAddrPort("[::ffff:10.0.0.1]:1") },
		"has a zone":                          func(c *Config) { c.Listeners[0].Address = netip.MustParseAddrPort("[fe80::1%eth0]:1") },
		"cannot be dialed":                    func(c *Config) { c.Listeners[0].Backends[0].Address = netip.MustParseAddrPort("0.0.0.0:1") },
		`state "asleep"`:                      func(c *Config) { c.Listeners[0].Backends[0].State = "asleep" },
		"backend 1":                           func(c *Config) { b := c.Listeners[0].Backends; c.Listeners[0].Backends = append(b, b[0]) },
		"has no address":                      func(c *Config) { c.DNS[0].Addresses = nil },
		"address 10.100.0.1:53 is used twice": func(c *Config) { c.DNS = append(c.DNS, c.DNS[0]) },
		`record "web.example"`:                func(c *Config) { c.DNS[0].Records["web.example"] = nil },
		`record "Web.internal"`:               func(c *Config) { c.DNS[0].Records["Web.internal"] = nil },
		"bad address":                         func(c *Config) { c.DNS[0].Records["x.internal"] = []netip.Addr{{}} },
		"bad network":                         func(c *Config) { c.DNS[0].Reverse = append(c.DNS[0].Reverse, netip.Prefix{}) },
		"more than 16384":                     func(c *Config) { c.Listeners = make([]Listener, MaxListeners+1) },
	} {
		c := good()
		spoil(c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	if _, err := ParseConfig(make([]byte, MaxConfigBytes+1)); err == nil {
		t.Error("a configuration that is too large was accepted")
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(`{"dns":[{"addresses":["0.0.0.0:53"],"records":{".internal":[""]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		check(t, err)
		second, err := ParseConfig(again)
		if err != nil {
			t.Fatalf("accepted, but not what it was written as: %v\n%s", err, again)
		}
		third, err := json.Marshal(second)
		check(t, err)
		if !reflect.DeepEqual(again, third) {
			t.Errorf("changes when read again:\n%s\n%s", again, third)
		}
		for _, d := range c.DNS {
			newZone(d)
		}
	})
}

func FuzzReverseAddress(f *testing.F) {
	f.Add("1.0.101.10.in-addr.arpa.")
	f.Add("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1.0.e.6.e.6.9.6.0.7.0.0.d.f.ip6.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		if a, ok := reverseAddress(name); ok && !a.IsValid() {
			t.Errorf("%q gave an address that is none", name)
		}
	})
}
