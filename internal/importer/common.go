package importer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// begin sets what every manifest has.
func (c *conversion) begin(name string, from *node) {
	c.draft.settings = append(c.draft.settings, setting{key: "schema", value: `"v1"`, required: true})
	short := label(name, 40)
	if short != name {
		c.note(from, "the app is called %s: a name has a-z, 0-9 and -", short)
	}
	c.draft.settings = append(c.draft.settings, setting{key: "name", value: text(short), required: true})
}

// note tells of a change, at a value of the file or at none.
func (c *conversion) note(n *node, format string, args ...any) {
	if n != nil && n.up != nil {
		n.alter(format, args...)
		return
	}
	c.extra = append(c.extra, Note{Kind: Altered, Reason: fmt.Sprintf(format, args...)})
}

// memory sets the RAM. n may be nil: a manifest cannot do without.
func (c *conversion) memory(n *node, unit int64) {
	const fallback = 256 * mib
	set := func(n *node, bytes int64) {
		c.draft.settings = append(c.draft.settings, setting{table: "resources", key: "memory", value: size(bytes), from: n, required: true})
	}
	s, ok := n.scalar()
	if ok {
		bytes, err := parseSize(s, unit)
		switch {
		case err != nil:
			n.drop("%v", err)
		case bytes < leastMemory:
			n.take()
			n.alter("%s became 96MiB, the least that a virtual machine needs", s)
			set(n, leastMemory)
			return
		default:
			n.take()
			set(n, bytes)
			return
		}
	}
	c.note(nil, "resources.memory = \"256MiB\" was put in: the file does not say how much memory the service needs, and a manifest must")
	set(nil, fallback)
}

// argv carries over a command, written as a list or as one string. It returns whether it did.
func (c *conversion) argv(n *node, table, key string) bool {
	list, ok := c.command(n)
	if !ok {
		return false
	}
	return c.draft.set(n, table, key, texts(list))
}

// command reads a command that is a list or a string.
func (c *conversion) command(n *node) ([]string, bool) {
	if n == nil || n.kind == kindNull {
		n.take()
		return nil, false
	}
	if n.kind == kindList {
		return n.strings()
	}
	s, ok := n.scalar()
	if !ok {
		if !n.done {
			n.drop("it is neither a string nor a list")
		}
		return nil, false
	}
	list, err := words(s)
	if err != nil {
		n.drop("%v", err)
		return nil, false
	}
	return list, true
}

// str carries over a string as it is.
func (c *conversion) str(n *node, table, key string) {
	if s, ok := n.scalar(); ok && s != "" {
		c.draft.set(n, table, key, text(s))
	} else if n != nil && !n.done && n.kind != kindTable && n.kind != kindList {
		n.take() // empty is the default
	}
}

// time carries over a duration that is a string with a unit.
func (c *conversion) time(n *node, table, key string) {
	s, ok := n.scalar()
	if !ok {
		return
	}
	d, err := parseDuration(s)
	if err != nil {
		n.drop("%v", err)
		return
	}
	if d%time.Millisecond != 0 {
		n.alter("rounded down to whole milliseconds")
	}
	c.draft.set(n, table, key, duration(d))
}

// signal carries over a signal, in the one spelling that manifests have.
func (c *conversion) signal(n *node) {
	s, ok := n.scalar()
	if !ok {
		return
	}
	name := strings.ToUpper(s)
	for number, known := range map[string]string{"1": "HUP", "2": "INT", "3": "QUIT", "10": "USR1", "12": "USR2", "15": "TERM", "28": "WINCH"} {
		if name == number {
			name = known
		}
	}
	c.draft.set(n, "stop", "signal", text("SIG"+strings.TrimPrefix(name, "SIG")))
}

// env carries over a variable.
func (c *conversion) env(n *node, name, value string) {
	if c.draft.set(n, "env", name, text(value)) && looksSecret(name) && value != "" {
		n.alter("it looks like a secret, and the manifest has it in the clear: better a [secrets.NAME] with env = [%q]", name)
	}
}

func looksSecret(name string) bool {
	upper := strings.ToUpper(name)
	return slices.ContainsFunc([]string{"PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "ACCESS_KEY", "CREDENTIAL"},
		func(word string) bool { return strings.Contains(upper, word) && !strings.HasSuffix(upper, "_FILE") })
}

// port declares a port that the process listens on, and gives its name. One that is declared already is the
// same port.
func (c *conversion) port(n *node, name string, number int64, protocol string) string {
	if protocol == "" {
		protocol = "tcp"
	}
	if known := c.portNamed(number, protocol); known != "" {
		n.take()
		return known
	}
	name = c.freeName(name, number, protocol)
	table := "ports." + name
	c.draft.set(n, table, "port", strconv.FormatInt(number, 10))
	if protocol != "tcp" {
		c.draft.settings = append(c.draft.settings, setting{table: table, key: "protocol", value: text(protocol), from: n})
	}
	return name
}

// portNamed finds a port by its number.
func (c *conversion) portNamed(number int64, protocol string) string {
	for _, table := range c.draft.tables("ports.") {
		p := c.draft.value(table, "protocol")
		if p == "" {
			p = `"tcp"`
		}
		if c.draft.value(table, "port") == strconv.FormatInt(number, 10) && p == text(protocol) {
			return strings.TrimPrefix(table, "ports.")
		}
	}
	return ""
}

func (c *conversion) freeName(name string, number int64, protocol string) string {
	if name != "" {
		name = label(name, 15)
	} else {
		name = "p" + strconv.FormatInt(max(0, min(number, 99999)), 10)
		if protocol != "tcp" {
			name += "-" + label(protocol, 6)
		}
	}
	for i, base := 2, name; c.draft.hasTable("ports." + name); i++ {
		name = fmt.Sprintf("%s-%d", base[:min(len(base), 12)], i)
	}
	return name
}

// public opens a port to the world under a number. It says whether it did: a port has one number outside.
func (c *conversion) public(n *node, name string, number int64) bool {
	table := "ports." + name
	if have := c.draft.value(table, "public_port"); have != "" {
		if have != strconv.FormatInt(number, 10) {
			n.drop("the port is public as %s already, and has one number outside", have)
			return false
		}
		n.take()
		return true
	}
	n.take()
	c.draft.settings = append(
		c.draft.settings,
		setting{table: table, key: "expose", value: `"public"`, from: n},
		setting{table: table, key: "edge", value: `"raw"`, from: n},
		setting{table: table, key: "public_port", value: strconv.FormatInt(number, 10), from: n},
	)
	return true
}

// ready begins the ready check; there is one.
func (c *conversion) ready(n *node) bool {
	if c.draft.hasTable("health.ready") {
		n.drop("a manifest has one ready check, and this is not the first")
		return false
	}
	return true
}

// volume carries over a volume. bytes may be 0: the file does not say.
func (c *conversion) volume(n *node, name, path string, bytes int64, readOnly bool) {
	short := label(name, 40)
	table := "volumes." + short
	if c.draft.hasTable(table) {
		n.drop("the volume is mounted already; a volume has one place")
		return
	}
	n.take()
	if bytes == 0 {
		bytes = gib
		n.alter("the size of 1GiB was put in: the file does not say how large the volume is, and a manifest must")
	}
	add := func(key, value string) {
		c.draft.settings = append(c.draft.settings, setting{table: table, key: key, value: value, from: n})
	}
	add("path", text(path))
	add("size", size(bytes))
	if readOnly {
		add("read_only", "true")
	}
}

// others drops services that were not chosen.
func (c *conversion) others(n *node, what string) {
	n.drop("another %s: import it by itself with --service, and deploy it as an app of its own", what)
}

// orNode gives the first that there is.
func orNode(nodes ...*node) *node {
	for _, n := range nodes {
		if n != nil {
			return n
		}
	}
	return nil
}
