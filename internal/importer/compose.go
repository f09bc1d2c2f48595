package importer

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

const whyHost = "an instance is a machine of its own, and has nothing to do with the kernel of its host"

func composeReasons() []reason {
	list := []reason{
		{"version", "it says which compose the file is for"},
		{"name", "the app has the name of the service"},
		{"networks", "all apps of an environment are in one network, and in no other"},
		{"configs", "files belong into the image"},
		{"include", "import opens no other files"},
		{"volumes", "volumes belong to apps: those of this service are in the manifest"},
		{"secrets", "values are put into the environment, not into files beside the manifest"},
		{"services.*.build", "an image is built and pushed first, and named with --image"},
		{"services.*.depends_on", "apps start by themselves, in any order; one that waits for another has to try again"},
		{"services.*.links", "apps reach each other as <name>.internal"},
		{"services.*.external_links", "apps reach each other as <name>.internal"},
		{"services.*.networks", "all apps of an environment are in one network, and in no other"},
		{"services.*.network_mode", "all apps of an environment are in one network, and in no other"},
		{"services.*.env_file", "import opens no other files: copy what is in it into [env], secrets into a bundle"},
		{"services.*.extends", "import opens no other files, and a service is converted as it stands"},
		{"services.*.configs", "files belong into the image"},
		{"services.*.tmpfs", "scratch space is on disk, resources.disk, and gone with the instance"},
		{"services.*.labels", "labels have no effect"},
		{"services.*.annotations", "labels have no effect"},
		{"services.*.logging", "logs are always kept: 50 MiB for each instance"},
		{"services.*.container_name", "instances get their names from the app"},
		{"services.*.hostname", "the host name is that of the instance"},
		{"services.*.domainname", "the host name is that of the instance"},
		{"services.*.dns", "the environment has a DNS of its own"},
		{"services.*.dns_search", "the environment has a DNS of its own"},
		{"services.*.dns_opt", "the environment has a DNS of its own"},
		{"services.*.extra_hosts", "the environment has a DNS of its own"},
		{"services.*.mac_address", "addresses are the platform's"},
		{"services.*.profiles", "what is deployed is what you deploy"},
		{"services.*.pull_policy", "images are pinned by digest: there is nothing newer to pull"},
		{"services.*.init", "there is always an init"},
		{"services.*.tty", "there is no terminal"},
		{"services.*.stdin_open", "there is no terminal"},
		{"services.*.attach", "it is for the terminal that runs compose"},
		{"services.*.read_only", "the image is never written to; scratch space over it cannot be turned off"},
		{"services.*.scale", "the number of instances is a setting of the environment"},
		{"services.*.post_start", "an instance runs one program"},
		{"services.*.pre_stop", "an instance runs one program"},
		{"services.*.memswap_limit", "there is no swap: memory is a hard cap"},
		{"services.*.mem_swappiness", "there is no swap: memory is a hard cap"},
		{"services.*.mem_reservation", "memory is a hard cap, and reserved"},
		{"services.*.gpus", "there are no GPUs"},
		{"services.*.deploy.replicas", "the number of instances is a setting of the environment"},
		{"services.*.deploy.mode", "the number of instances is a setting of the environment"},
		{"services.*.deploy.placement", whyPlacement},
		{"services.*.deploy.labels", "labels have no effect"},
		{"services.*.deploy.endpoint_mode", "connections are spread evenly"},
		{"services.*.deploy.rollback_config", "a rollback is as fast as it can be"},
		{"services.*.deploy.resources.reservations", "memory is a hard cap, and reserved"},
		{"services.*.deploy.resources.limits.pids", "a machine has no limit of processes of its own"},
		{"services.*.healthcheck.start_period", "there is none: the check begins at once, and rollout.boot_timeout says how long it may fail"},
		{"services.*.healthcheck.start_interval", "there is one interval"},
	}
	for _, key := range []string{
		"privileged", "cap_add", "cap_drop", "devices", "device_cgroup_rules", "security_opt", "sysctls", "ulimits", "ipc", "pid", "uts",
		"userns_mode", "cgroup", "cgroup_parent", "shm_size", "oom_kill_disable", "oom_score_adj", "isolation", "runtime", "group_add",
		"pids_limit", "cpuset", "cpu_shares", "cpu_quota", "cpu_period", "blkio_config", "credential_spec", "storage_opt",
	} {
		list = append(list, reason{"services.*." + key, whyHost})
	}
	return list
}

// compose converts a service of a compose file.
func (c *conversion) compose() error {
	services := c.root.get("services")
	var names []string
	for _, s := range services.members() {
		if s.kind == kindTable {
			names = append(names, s.key)
		}
	}
	name, err := c.choose(names)
	if err != nil {
		return err
	}
	for _, s := range services.items {
		if s.key != name {
			c.others(s, "service")
		}
	}
	s := services.get(name)
	services.used, s.used = true, true
	c.begin(name, s)
	if image := s.get("image"); image != nil {
		c.result.Image = image.text
		if known, ok := image.scalar(); ok {
			image.drop("the image is named when a Release is made: --image %s", known)
		}
	}
	c.composeProcess(s)
	c.composeResources(s)
	c.composePorts(s)
	c.composeHealth(s.get("healthcheck"))
	c.composeVolumes(s.get("volumes"))
	c.composeRollout(s.get("deploy", "update_config"))
	c.composeSecrets(s)
	for _, n := range slices.Concat(c.root.items, s.items) {
		if strings.HasPrefix(n.key, "x-") {
			n.drop("an extension of compose; where it is used, it was read")
		}
	}
	return nil
}

func (c *conversion) composeProcess(s *node) {
	c.argv(s.get("entrypoint"), "", "entrypoint")
	c.argv(s.get("command"), "", "command")
	c.str(s.get("working_dir"), "", "workdir")
	c.str(s.get("user"), "", "user")
	if n := s.get("platform"); n != nil {
		platform, _ := n.scalar()
		if arch, ok := strings.CutPrefix(platform, "linux/"); ok {
			arch, variant, _ := strings.Cut(arch, "/")
			c.draft.set(n, "", "arch", texts([]string{arch}))
			if variant != "" {
				n.alter("the variant %s is not told apart from others of %s", show(variant), arch)
			}
		}
	}
	c.composeRestart(s)
	c.signal(s.get("stop_signal"))
	c.time(s.get("stop_grace_period"), "stop", "timeout")
	environment := s.get("environment")
	var vars []string
	var from *node
	for _, n := range environment.members() {
		key, value := n.key, n.text
		if environment.kind == kindList {
			pair, ok := n.scalar()
			if !ok {
				continue
			}
			var set bool
			if key, value, set = strings.Cut(pair, "="); !set {
				vars, from = append(vars, key), orNode(from, n)
				n.alter("it comes from the shell that runs compose; here the environment has to supply it")
				n.take()
				continue
			}
		} else if n.kind == kindNull {
			vars, from = append(vars, key), orNode(from, n)
			n.alter("it comes from the shell that runs compose; here the environment has to supply it")
			n.take()
			continue
		} else if _, ok := n.scalar(); !ok {
			continue
		}
		c.env(n, key, value)
	}
	if vars != nil {
		c.draft.settings = append(c.draft.settings, setting{key: "vars", value: texts(vars), from: from})
	}
}

func (c *conversion) composeRestart(s *node) {
	n := s.get("restart")
	if policy := s.get("deploy", "restart_policy"); policy != nil {
		n.drop("deploy.restart_policy replaces it")
		n = policy.get("condition")
		for _, key := range []string{"delay", "max_attempts", "window"} {
			policy.get(key).drop("restarts go on, with pauses from 1 s up to 60 s")
		}
	}
	policy, ok := n.scalar()
	if !ok {
		c.note(s, "it is restarted whenever it ends, the default of Pinnace; compose does not restart without being told: restart = \"never\"")
		return
	}
	name, limit, _ := strings.Cut(policy, ":")
	switch name {
	case "no", "none", "false":
		name = "never"
	case "unless-stopped", "any":
		name = "always"
	}
	if limit != "" {
		n.alter("restarts go on, with pauses from 1 s up to 60 s, not %s times", limit)
	}
	c.draft.set(n, "", "restart", text(name))
}

func (c *conversion) composeResources(s *node) {
	limits := s.get("deploy", "resources", "limits")
	for _, pair := range [][2]*node{{limits.get("memory"), s.get("mem_limit")}, {limits.get("cpus"), s.get("cpus")}} {
		if pair[0] != nil {
			pair[1].drop("deploy.resources.limits replaces it")
		}
	}
	c.memory(orNode(limits.get("memory"), s.get("mem_limit")), 1)
	if n := orNode(limits.get("cpus"), s.get("cpus")); n != nil {
		if text, ok := n.scalar(); ok {
			if cpu, err := parseCPU(text); err == nil {
				c.draft.set(n, "resources", "cpu", cpu)
				n.alter("resources.cpu is a weight and no limit")
			} else {
				n.drop("%v", err)
			}
		}
	}
}

func (c *conversion) composeHealth(h *node) {
	test := h.get("test")
	if h == nil || h.isNothing() {
		h.take()
		return
	}
	list, ok := []string(nil), false
	if test != nil && test.kind == kindList {
		list, ok = test.strings()
	} else if s, is := test.scalar(); is {
		list, ok = []string{"CMD-SHELL", s}, true
	}
	switch {
	case !ok && test == nil:
		return // the image's own check with other times; all of it is listed
	case !ok:
		return
	case len(list) > 0 && list[0] == "CMD":
		list = list[1:]
	case len(list) > 0 && list[0] == "CMD-SHELL":
		list = append([]string{"/bin/sh", "-c"}, list[1:]...)
	case len(list) == 1 && list[0] == "NONE":
		h.take()
		return
	}
	const table = "health.ready"
	c.draft.settings = append(c.draft.settings, setting{table: table, key: "type", value: `"exec"`, from: test})
	c.draft.set(test, table, "command", texts(list))
	c.time(h.get("interval"), table, "interval")
	c.time(h.get("timeout"), table, "timeout")
	if n := h.get("retries"); n != nil {
		if count, ok := n.integer(); ok {
			c.draft.set(n, table, "fail", strconv.FormatInt(count, 10))
		}
	}
	h.get("disable").take()
}

// isNothing tells whether a health check says that there is none.
func (n *node) isNothing() bool {
	return n.kind == kindNull || n.get("disable").isTrue()
}

func (c *conversion) composeRollout(u *node) {
	if n := u.get("parallelism"); n != nil {
		if count, ok := n.integer(); ok && count > 0 {
			c.draft.set(n, "rollout", "max_parallel", strconv.FormatInt(count, 10))
		}
	}
	c.time(u.get("monitor"), "rollout", "hold")
	if n := u.get("failure_action"); n != nil {
		if action, _ := n.scalar(); action == "rollback" || action == "pause" {
			c.draft.set(n, "rollout", "on_failure", text(action))
		} else {
			n.drop("a rollout that fails is rolled back, or pauses")
		}
	}
	if n := u.get("order"); n != nil {
		stopFirst := len(c.draft.tables("volumes.")) > 0
		switch order, _ := n.scalar(); {
		case order == "start-first" && !stopFirst, order == "stop-first" && stopFirst:
			n.take()
		case stopFirst:
			n.drop("with a volume the old instance stops first, as the volume moves on to the new one")
		default:
			n.drop("a new instance starts before the old one stops")
		}
	}
	u.get("delay").drop("the next instance starts when the one before has been ready for rollout.hold")
	u.get("max_failure_ratio").drop("one instance that fails ends a rollout")
}

func (c *conversion) composeVolumes(v *node) {
	for _, n := range v.members() {
		if n.kind == kindTable {
			c.composeLongVolume(n)
			continue
		}
		s, ok := n.scalar()
		if !ok {
			continue
		}
		source, target, both := strings.Cut(s, ":")
		target, options, _ := strings.Cut(target, ":")
		switch {
		case !both:
			n.drop("a volume without a name is gone with its container; here the whole scratch disk is")
		case isHostPath(source):
			n.drop("nothing of the host is mounted: put files into the image, or declare a volume")
		default:
			c.volume(n, source, path.Clean(target), 0, slices.Contains(strings.Split(options, ","), "ro"))
		}
	}
}

func isHostPath(s string) bool {
	return strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") || strings.HasPrefix(s, "~") || strings.Contains(s, `\`)
}

func (c *conversion) composeLongVolume(n *node) {
	kind, _ := n.get("type").scalar()
	source, _ := n.get("source").scalar()
	target, _ := n.get("target").scalar()
	switch {
	case kind == "bind":
		n.drop("nothing of the host is mounted: put files into the image, or declare a volume")
	case kind == "tmpfs":
		n.drop("scratch space is on disk, resources.disk, and gone with the instance")
	case kind != "volume":
		n.drop("there are no mounts of type %s", show(kind))
	case source == "" || target == "":
		n.drop("a volume without a name is gone with its container; here the whole scratch disk is")
	default:
		for _, key := range []string{"volume", "bind", "tmpfs", "consistency"} {
			n.get(key).drop("volumes are new disks; they have no such options")
		}
		for _, key := range []string{"type", "source", "read_only"} {
			n.get(key).take()
		}
		c.volume(n.get("target"), source, path.Clean(target), 0, n.get("read_only").isTrue())
	}
}

// composeSecrets makes one bundle with a key for each secret: then every file is where compose has it.
func (c *conversion) composeSecrets(s *node) {
	const dir = "/run/secrets"
	var keys []string
	var from *node
	for _, n := range s.get("secrets").members() {
		name, ok := n.scalar()
		if n.kind == kindTable {
			name, ok = n.get("source").scalar()
			target, has := n.get("target").scalar()
			if has && target != name && target != dir+"/"+name {
				n.drop("a secret's file has the name of its key: name the key %s, and use it under that name", show(path.Base(target)))
				continue
			}
			for _, key := range []string{"uid", "gid", "mode"} {
				n.get(key).drop("mode and owner are those of the bundle: [secrets.NAME] mode, owner")
			}
			n.get("source").take()
			n.get("target").take()
		}
		if ok {
			n.used = true
			if n.kind != kindTable {
				n.take()
			}
			keys, from = append(keys, name), orNode(from, n)
		}
	}
	if keys == nil {
		return
	}
	table := "secrets." + label(c.result.Service, 40)
	for _, s := range [][2]string{{"path", text(dir)}, {"mode", `"0444"`}, {"require", texts(keys)}} {
		c.draft.settings = append(c.draft.settings, setting{table: table, key: s[0], value: s[1], from: from})
	}
	from.alter("put the values into the bundle %s of the environment; the files are where they were, in %s", strings.TrimPrefix(table, "secrets."), dir)
}
