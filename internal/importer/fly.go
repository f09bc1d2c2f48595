package importer

import (
	"slices"
	"strconv"
	"strings"
)

const whyTLS = "Fly ends TLS here; Pinnace does not end TLS yet: let the program do it, or a proxy in front"

func flyReasons() []reason {
	return []reason{
		{"primary_region", "where instances run is a matter of the environment's hosts"},
		{"build", "an image is built and pushed first, and named with --image"},
		{"http_service.force_https", whyTLS},
		{"http_service.tls_options", whyTLS},
		{"http_service.http_options", "Pinnace carries connections and does not read HTTP"},
		{"http_service.auto_stop_machines", "instances are not stopped when idle"},
		{"http_service.auto_start_machines", "instances are not stopped when idle"},
		{"http_service.min_machines_running", "the number of instances is a setting of the environment"},
		{"http_service.concurrency", "connections are spread evenly, without limits"},
		{"services.auto_stop_machines", "instances are not stopped when idle"},
		{"services.auto_start_machines", "instances are not stopped when idle"},
		{"services.min_machines_running", "the number of instances is a setting of the environment"},
		{"services.concurrency", "connections are spread evenly, without limits"},
		{"services.ports.force_https", whyTLS},
		{"services.ports.tls_options", whyTLS},
		{"services.ports.http_options", "Pinnace carries connections and does not read HTTP"},
		{"vm.gpu_kind", "there are no GPUs"},
		{"vm.gpus", "there are no GPUs"},
		{"vm.kernel_args", "the kernel is the platform's"},
		{"vm.host_dedication_id", "where instances run is a matter of the environment's hosts"},
		{"swap_size_mb", "there is no swap: memory is a hard cap"},
		{"host_dedication_id", "where instances run is a matter of the environment's hosts"},
		{"statics", "files are served by the program"},
		{"files", "files belong into the image, secret ones into a bundle of the environment: [secrets.NAME]"},
		{"metrics", "metrics are not scraped yet"},
		{"console_command", "there is no console"},
		{"mounts.auto_extend_size_threshold", "volumes are grown by hand"},
		{"mounts.auto_extend_size_increment", "volumes are grown by hand"},
		{"mounts.auto_extend_size_limit", "volumes are grown by hand"},
		{"mounts.snapshot_retention", "snapshots are made by hand"},
		{"mounts.scheduled_snapshots", "snapshots are made by hand"},
		{"deploy.seed_command", "there is no command for the first deploy only"},
		{"deploy.release_command_vm", "rollout.before runs in a machine like that of the app"},
		{"deploy.release_command_timeout", "it is set without a command"},
		{"restart.retries", "restarts go on, with growing pauses"},
		{"restart.processes", "it says which process group this is for"},
		{"experimental", "it is of Fly alone"},
		{"processes", "another process group"},
	}
}

// fly converts a process group of a fly.toml.
func (c *conversion) fly() error {
	root := c.root
	processes := root.get("processes")
	names := []string{}
	for _, p := range processes.members() {
		names = append(names, p.key)
	}
	if len(names) == 0 {
		names = []string{"app"}
	}
	service, err := c.choose(names)
	if err != nil {
		return err
	}
	app := root.get("app")
	name, _ := app.scalar()
	if name == "" {
		name = service
	} else if len(names) > 1 {
		name += "-" + service
		app.alter("each process group is an app of its own")
	}
	c.begin(name, app)
	app.take()
	for _, p := range processes.members() {
		if p.key == service {
			c.argv(p, "", "command")
		} else {
			c.others(p, "process group")
		}
	}
	c.result.Image, _ = root.get("build", "image").scalar()
	if c.result.Image != "" {
		root.get("build", "image").drop("the image is named when a Release is made: --image %s", c.result.Image)
	}
	c.flyProcess(root)
	for _, s := range c.flyFor(root.all("http_service"), service) {
		c.flyHTTP(s)
	}
	for _, s := range c.flyFor(root.all("services"), service) {
		c.flyService(s)
	}
	for _, check := range c.flyFor(root.get("checks").members(), service) {
		c.flyCheck(check, "")
	}
	c.flyVM(c.flyFor(root.all("vm"), service))
	for _, m := range c.flyFor(slices.Concat(root.all("mounts"), root.all("mount")), service) {
		c.flyMount(m)
	}
	for _, r := range c.flyFor(root.all("restart"), service) {
		c.flyRestart(r)
	}
	c.flyDeploy(root.get("deploy"))
	return nil
}

// flyFor gives the tables that are for a process group, and drops those of others.
func (c *conversion) flyFor(tables []*node, service string) []*node {
	var mine []*node
	for _, t := range tables {
		groups := t.get("processes")
		list, ok := groups.strings()
		if ok && len(list) > 0 && !slices.Contains(list, service) {
			t.drop("it is for another process group")
			continue
		}
		groups.take()
		mine = append(mine, t)
	}
	return mine
}

func (c *conversion) flyProcess(root *node) {
	c.signal(root.get("kill_signal"))
	if n := root.get("kill_timeout"); n != nil {
		if seconds, ok := n.integer(); ok && n.kind == kindInteger {
			c.draft.set(n, "stop", "timeout", text(strconv.FormatInt(seconds, 10)+"s"))
		} else {
			c.time(n, "stop", "timeout")
		}
	}
	for _, v := range root.get("env").members() {
		if value, ok := v.scalar(); ok {
			c.env(v, v.key, value)
		}
	}
	c.argv(root.get("experimental", "entrypoint"), "", "entrypoint")
	c.argv(root.get("experimental", "cmd"), "", "command")
}

func (c *conversion) flyHTTP(s *node) {
	n := s.get("internal_port")
	number, ok := n.integer()
	if !ok {
		if number = 8080; n != nil {
			return
		}
		s.alter("its port is 8080, Fly's default")
	}
	s.used = true
	name := c.port(n, "web", number, "tcp")
	// The world reaches Fly's proxy on 80 and 443; what is left without TLS is 80.
	c.draft.settings = append(
		c.draft.settings,
		setting{table: "ports." + name, key: "expose", value: `"public"`, from: n},
		setting{table: "ports." + name, key: "edge", value: `"raw"`, from: n},
		setting{table: "ports." + name, key: "public_port", value: "80", from: n},
	)
	s.alter("it is public on port 80 in plain: Fly also has 443 and ends TLS there, which Pinnace does not yet")
	for _, check := range s.all("checks") {
		c.flyCheck(check, name, "http")
	}
	for _, check := range s.all("machine_checks") {
		check.drop("there are no one-off test machines; rollout.before runs a command before anything is touched")
	}
}

func (c *conversion) flyService(s *node) {
	n := s.get("internal_port")
	number, ok := n.integer()
	if !ok {
		return // without it the service leads nowhere; all of it is listed
	}
	protocol, _ := s.get("protocol").scalar()
	name := c.port(n, "", number, protocol)
	s.get("protocol").take()
	for _, p := range s.all("ports") {
		c.flyPort(p, name)
	}
	for _, kind := range []string{"tcp", "http"} {
		for _, check := range s.all(kind + "_checks") {
			c.flyCheck(check, name, kind)
		}
	}
	for _, key := range []string{"script_checks", "machine_checks"} {
		for _, check := range s.all(key) {
			check.drop("Pinnace runs health.ready and health.live, of type http, tcp or exec")
		}
	}
}

// flyPort opens a port to the world when what comes in there goes to the program as it is.
func (c *conversion) flyPort(p *node, name string) {
	handlers, _ := p.get("handlers").strings()
	n := p.get("port")
	number, ok := n.integer()
	switch {
	case slices.Contains(handlers, "tls"):
		p.drop("%s", whyTLS)
	case slices.Contains(handlers, "proxy_proto"):
		p.drop("Fly sends the PROXY protocol here, version 1 unless it is told otherwise; Pinnace has version 2: proxy_protocol = \"v2\"")
	case !ok:
		p.drop("one number outside leads to a port; there are no ranges")
	default:
		if c.public(n, name, number) && len(handlers) > 0 {
			p.get("handlers").alter("connections go to the program as they are, without %s", strings.Join(handlers, ", "))
		}
		p.get("handlers").take()
	}
}

// flyCheck makes the ready check of a check. kind is "" when the check says it itself.
func (c *conversion) flyCheck(check *node, port string, kind ...string) {
	if !c.ready(check) {
		return
	}
	const table = "health.ready"
	typ := check.get("type")
	what, ok := typ.scalar()
	if !ok && len(kind) > 0 {
		what = kind[0]
	}
	if what != "http" && what != "tcp" {
		check.drop("Pinnace has checks of type http, tcp and exec")
		return
	}
	if n := check.get("port"); n != nil {
		if number, ok := n.integer(); ok {
			port = c.port(n, "", number, "tcp")
			n.take()
		}
	}
	if port == "" {
		check.drop("it does not say which port it is about")
		return
	}
	typ.take()
	check.used = true
	c.draft.settings = append(
		c.draft.settings,
		setting{table: table, key: "type", value: text(what), from: check},
		setting{table: table, key: "port", value: text(port), from: check},
	)
	if what == "http" {
		c.str(check.get("path"), table, "path")
		if method, ok := check.get("method").scalar(); ok && strings.EqualFold(method, "get") {
			check.get("method").take()
		}
	}
	for _, key := range []string{"interval", "timeout"} {
		n := check.get(key)
		if n != nil && n.kind == kindInteger {
			n.drop("a bare number means seconds, milliseconds or nanoseconds in a fly.toml, depending on where it stands")
			continue
		}
		c.time(n, table, key)
	}
	check.get("grace_period").drop("there is none: the check begins at once, and rollout.boot_timeout says how long it may fail")
	check.get("method").drop("checks use GET")
	check.get("headers").drop("checks send no headers of their own")
	check.get("tls_skip_verify").drop("checks use plain HTTP")
	check.get("tls_server_name").drop("checks use plain HTTP")
	if p := check.get("protocol"); p != nil {
		if s, _ := p.scalar(); s == "http" {
			p.take()
		} else {
			p.drop("checks use plain HTTP")
		}
	}
}

// flySizes are Fly's machines: processors and MiB.
var flySizes = map[string][2]int64{
	"shared-cpu-1x": {1, 256}, "shared-cpu-2x": {2, 512}, "shared-cpu-4x": {4, 1024}, "shared-cpu-8x": {8, 2048},
	"performance-1x": {1, 2048}, "performance-2x": {2, 4096}, "performance-4x": {4, 8192}, "performance-8x": {8, 16384}, "performance-16x": {16, 32768},
}

func (c *conversion) flyVM(tables []*node) {
	var memory *node
	for i, vm := range tables {
		if i > 0 {
			vm.drop("one size is for all instances of an app")
			continue
		}
		memory = orNode(vm.get("memory"), vm.get("memory_mb"))
		preset := vm.get("size")
		name, _ := preset.scalar()
		if size, ok := flySizes[name]; ok {
			preset.take()
			if vm.get("cpus") == nil {
				c.draft.set(preset, "resources", "cpu", strconv.FormatInt(size[0], 10))
			}
			if memory == nil {
				c.draft.settings = append(c.draft.settings, setting{
					table: "resources", key: "memory", value: sizeOfMiB(size[1]), from: preset, required: true,
				})
			}
		} else if preset != nil {
			preset.drop("%s is no size that is known here: set resources.cpu and resources.memory", show(name))
		}
		if n := vm.get("cpus"); n != nil {
			if s, ok := n.scalar(); ok {
				if cpu, err := parseCPU(s); err == nil {
					c.draft.set(n, "resources", "cpu", cpu)
				}
			}
		}
		if kind, _ := vm.get("cpu_kind").scalar(); kind != "" {
			vm.get("cpu_kind").drop("resources.cpu is a weight: there are no kinds of processors")
		}
	}
	if !c.draft.has("resources", "memory") {
		c.memory(memory, mib)
	}
}

func sizeOfMiB(n int64) string { return size(n * mib) }

func (c *conversion) flyMount(m *node) {
	source, _ := m.get("source").scalar()
	path, ok := m.get("destination").scalar()
	if !ok {
		m.drop("it does not say where it is mounted")
		return
	}
	initial := m.get("initial_size")
	var bytes int64
	if s, ok := initial.scalar(); ok {
		var err error
		if bytes, err = parseSize(s, gib); err != nil {
			initial.drop("%v", err)
		}
	}
	c.volume(m.get("destination"), source, path, bytes, false)
	m.get("source").take()
	initial.take()
}

func (c *conversion) flyRestart(r *node) {
	n := r.get("policy")
	policy, ok := n.scalar()
	if !ok {
		return
	}
	c.draft.set(n, "", "restart", text(policy))
}

func (c *conversion) flyDeploy(d *node) {
	if d == nil {
		return
	}
	if n := d.get("strategy"); n != nil {
		strategy, _ := n.scalar()
		switch strategy {
		case "bluegreen":
			strategy = "blue-green"
		case "immediate":
			n.drop("every rollout waits for the new instances to be ready")
		}
		if !n.done {
			c.draft.set(n, "rollout", "strategy", text(strategy))
		}
	}
	if n := d.get("max_unavailable"); n != nil {
		if count, ok := n.integer(); ok && n.kind == kindInteger {
			c.draft.set(n, "rollout", "max_parallel", strconv.FormatInt(count, 10))
		} else {
			n.drop("rollout.max_parallel is a number of instances, not a part of them")
		}
	}
	c.time(d.get("wait_timeout"), "rollout", "boot_timeout")
	if c.argv(d.get("release_command"), "rollout.before", "command") {
		c.time(d.get("release_command_timeout"), "rollout.before", "timeout")
	}
}
