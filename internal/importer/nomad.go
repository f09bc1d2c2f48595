package importer

import (
	"slices"
	"strconv"
	"strings"
)

const (
	whyPlacement = "where instances run is decided by the scheduler, and by labels of hosts"
	whyPorts     = "which network there is, is the platform's"
)

func nomadReasons() []reason {
	list := []reason{
		{"job.*.datacenters", whyPlacement},
		{"job.*.region", whyPlacement},
		{"job.*.node_pool", whyPlacement},
		{"job.*.namespace", "the environment is named when a Release is deployed"},
		{"job.*.priority", "there are no priorities"},
		{"job.*.all_at_once", "an app is deployed instance by instance"},
		{"job.*.periodic", "there are no timed jobs"},
		{"job.*.parameterized", "there are no dispatched jobs"},
		{"job.*.multiregion", "an environment is one region"},
		{"job.*.ui", "it is for Nomad's own pages"},
		{"job.*.group.*.count", "the number of instances is a setting of the environment"},
		{"job.*.group.*.scaling", "the number of instances is a setting of the environment"},
		{"job.*.group.*.reschedule", "what is lost is always replaced"},
		{"job.*.group.*.disconnect", "what is lost is always replaced"},
		{"job.*.group.*.migrate", "hosts are drained one instance at a time"},
		{"job.*.group.*.shutdown_delay", "stop.drain is the time between leaving the routing and the signal"},
		{"job.*.group.*.network", whyPorts},
		{"job.*.group.*.volume", "host and CSI volumes are not known here: declare [volumes.NAME]"},
		{"job.*.group.*.task.*.driver", "an instance is always a virtual machine that runs an image"},
		{"job.*.group.*.task.*.artifact", "what a program needs belongs into its image"},
		{"job.*.group.*.task.*.template", "there are no templates: put the file into the image, or a secret one into [secrets.NAME]"},
		{"job.*.group.*.task.*.vault", "secrets come from bundles of the environment: [secrets.NAME]"},
		{"job.*.group.*.task.*.consul", "names are <app>.internal in the environment's DNS"},
		{"job.*.group.*.task.*.identity", "there are no identities of workloads yet"},
		{"job.*.group.*.task.*.volume_mount", "host and CSI volumes are not known here: declare [volumes.NAME]"},
		{"job.*.group.*.task.*.logs", "logs are always kept: 50 MiB for each instance"},
		{"job.*.group.*.task.*.lifecycle", "an instance runs one program"},
		{"job.*.group.*.task.*.leader", "an instance runs one program"},
		{"job.*.group.*.task.*.shutdown_delay", "stop.drain is the time between leaving the routing and the signal"},
		{"job.*.group.*.task.*.dispatch_payload", "there are no dispatched jobs"},
		{"job.*.group.*.task.*.csi_plugin", "there are no plugins"},
		{"job.*.group.*.task.*.scaling", "resources are what the manifest says"},
		{"job.*.group.*.task.*.resources.cpu", "it is in MHz, which are not the same on two hosts: set resources.cpu in processors"},
		{"job.*.group.*.task.*.resources.memory_max", "memory is a hard cap; there is no more to be had"},
		{"job.*.group.*.task.*.resources.device", "there are no devices"},
		{"job.*.group.*.task.*.resources.numa", whyPlacement},
		{"job.*.group.*.task.*.config.volumes", "nothing of the host is mounted: put files into the image, or declare [volumes.NAME]"},
		{"job.*.group.*.task.*.config.mount", "nothing of the host is mounted: put files into the image, or declare [volumes.NAME]"},
		{"job.*.group.*.task.*.config.mounts", "nothing of the host is mounted: put files into the image, or declare [volumes.NAME]"},
		{"job.*.group.*.task.*.config.privileged", "an instance is a machine of its own, and never has rights on its host"},
		{"job.*.group.*.task.*.config.auth", "credentials for registries are those of docker login, and of the hosts"},
		{"job.*.group.*.task.*.config.force_pull", "images are pinned by digest: there is nothing newer to pull"},
		{"variable", "variables are known to Nomad only; the values that use them are listed"},
		{"locals", "locals are known to Nomad only; the values that use them are listed"},
	}
	for _, level := range []string{"job.*", "job.*.group.*", "job.*.group.*.task.*"} {
		for _, key := range []string{"constraint", "affinity", "spread"} {
			list = append(list, reason{level + "." + key, whyPlacement})
		}
		list = append(list, reason{level + ".meta", "it is for people and tools, and has no effect"})
	}
	return list
}

// nomadTask is a task with all that is above it.
type nomadTask struct {
	name             string
	job, group, task *node
}

// nomad converts a task of a job.
func (c *conversion) nomad() error {
	var tasks []nomadTask
	for _, job := range c.root.all("job") {
		for _, group := range job.all("group") {
			for _, task := range group.all("task") {
				tasks = append(tasks, nomadTask{job: job, group: group, task: task})
			}
		}
		for _, task := range job.all("task") { // of old jobs
			tasks = append(tasks, nomadTask{job: job, task: task})
		}
	}
	var names []string
	for i, t := range tasks {
		tasks[i].name = t.task.name
		if slices.ContainsFunc(tasks, func(o nomadTask) bool { return o.task != t.task && o.task.name == t.task.name }) && t.group != nil {
			tasks[i].name = t.group.name + "/" + t.task.name
		}
		names = append(names, tasks[i].name)
	}
	chosen, err := c.choose(names)
	if err != nil {
		return err
	}
	mine := tasks[slices.Index(names, chosen)]
	for _, t := range tasks {
		switch {
		case t.task == mine.task:
		case t.group != mine.group && t.group != nil:
			if !t.group.done {
				c.others(t.group, "group")
			}
		default:
			t.task.drop("another task beside this one: an instance runs one program. Make it an app of its own (--service %s), or part of the image", t.name)
		}
	}
	name := mine.task.name
	if len(tasks) == 1 {
		name = mine.job.name
	}
	c.begin(name, mine.task)
	mine.job.used, mine.task.used = true, true
	c.nomadJob(mine)
	c.nomadTask(mine.task)
	ports := c.nomadPorts(mine)
	for _, s := range slices.Concat(mine.group.all("service"), mine.task.all("service")) {
		c.nomadService(s, ports)
	}
	return nil
}

func (c *conversion) nomadJob(t nomadTask) {
	if n := t.job.get("type"); n != nil {
		switch kind, _ := n.scalar(); kind {
		case "service":
			n.take()
		case "batch":
			c.draft.set(n, "", "restart", `"on-failure"`)
			n.alter("a batch job ends by itself: it is started again only when it fails")
		default:
			n.drop("there are apps with a number of instances only; not one on every host")
		}
	}
	update := orNode(t.group.get("update"), t.job.get("update"))
	if t.group.get("update") != nil {
		t.job.get("update").drop("that of the group replaces it")
	}
	c.nomadUpdate(update)
	restart := orNode(t.task.get("restart"), t.group.get("restart"))
	if n := restart.get("attempts"); n != nil {
		if count, ok := n.integer(); ok && count == 0 {
			c.draft.set(n, "", "restart", `"never"`)
		}
	}
	for _, n := range restart.members() {
		if !n.done {
			n.drop("restarts go on, with pauses from 1 s up to 60 s")
		}
	}
	if disk := t.group.get("ephemeral_disk", "size"); disk != nil {
		if n, ok := disk.integer(); ok && n > 0 && n < 1<<30 {
			c.draft.set(disk, "resources", "disk", size(n*mib))
		}
	}
	for _, key := range []string{"sticky", "migrate"} {
		t.group.get("ephemeral_disk", key).drop("the scratch disk is gone when an instance is replaced: declare [volumes.NAME] for what must be kept")
	}
	if n := t.group.get("stop_after_client_disconnect"); n != nil {
		n.drop("what is lost is always replaced")
	}
}

func (c *conversion) nomadUpdate(u *node) {
	if n := u.get("max_parallel"); n != nil {
		if count, ok := n.integer(); ok {
			c.draft.set(n, "rollout", "max_parallel", strconv.FormatInt(count, 10))
		}
	}
	c.time(u.get("min_healthy_time"), "rollout", "hold")
	c.time(u.get("healthy_deadline"), "rollout", "boot_timeout")
	c.time(u.get("progress_deadline"), "rollout", "deadline")
	if n := u.get("auto_revert"); n != nil {
		if s, ok := n.scalar(); ok && s == "true" {
			c.draft.set(n, "rollout", "on_failure", `"rollback"`)
		} else if ok {
			c.draft.set(n, "rollout", "on_failure", `"pause"`)
		}
	}
	if n := u.get("canary"); n != nil {
		if count, ok := n.integer(); ok && count > 0 {
			c.draft.set(n, "rollout", "canary", strconv.FormatInt(count, 10))
			c.draft.settings = append(c.draft.settings, setting{table: "rollout", key: "strategy", value: `"canary"`, from: n})
		} else if ok {
			n.take()
		}
	}
	u.get("auto_promote").drop("a canary goes on by itself when it has been ready for rollout.hold")
	u.get("health_check").drop("an instance is healthy when its ready check passes")
	u.get("stagger").drop("the next instance starts when the one before has been ready for rollout.hold")
}

func (c *conversion) nomadTask(t *node) {
	config := t.get("config")
	if n := t.get("driver"); n != nil {
		switch driver, _ := n.scalar(); driver {
		case "docker", "podman", "containerd-driver":
			n.take()
		}
	}
	image := config.get("image")
	if s, ok := image.scalar(); ok {
		c.result.Image = s
		image.drop("the image is named when a Release is made: --image %s", s)
	} else if image != nil && image.kind == kindExpression {
		c.result.Image = image.text
	}
	c.argv(config.get("entrypoint"), "", "entrypoint")
	c.nomadCommand(config)
	c.str(config.get("work_dir"), "", "workdir")
	c.str(t.get("user"), "", "user")
	c.signal(t.get("kill_signal"))
	c.time(t.get("kill_timeout"), "stop", "timeout")
	for _, v := range t.get("env").members() {
		if value, ok := v.scalar(); ok {
			c.env(v, v.key, value)
		}
	}
	resources := t.get("resources")
	if n := resources.get("cores"); n != nil {
		if s, ok := n.scalar(); ok {
			if cpu, err := parseCPU(s); err == nil {
				c.draft.set(n, "resources", "cpu", cpu)
			}
		}
	}
	c.memory(resources.get("memory"), mib)
}

// nomadCommand joins command and args, which are one list for the image.
func (c *conversion) nomadCommand(config *node) {
	command, args := config.get("command"), config.get("args")
	var list []string
	if s, ok := command.scalar(); ok {
		list = append(list, s)
	} else if command != nil {
		args.drop("they belong to a command that is not known")
		return
	}
	if args != nil {
		more, ok := args.strings()
		if !ok {
			command.drop("its args are not known")
			return
		}
		list = append(list, more...)
	}
	if list == nil {
		return
	}
	c.draft.set(orNode(command, args), "", "command", texts(list))
	args.take()
}

// nomadPorts declares the ports of a group, and gives their names by those of Nomad.
func (c *conversion) nomadPorts(t nomadTask) map[string]string {
	names := map[string]string{}
	for _, network := range slices.Concat(t.group.all("network"), t.task.get("resources").all("network")) {
		if mode := network.get("mode"); mode != nil {
			if s, _ := mode.scalar(); s == "bridge" || s == "host" {
				mode.drop("every instance has an address of its own")
			}
		}
		for _, p := range network.all("port") {
			static, hasStatic := p.get("static").integer()
			inside, hasTo := p.get("to").integer()
			if !hasTo || inside <= 0 {
				inside = static
			}
			if !hasTo && !hasStatic {
				p.drop("Nomad chooses the number and tells the program in NOMAD_PORT_%s; in Pinnace the program listens on a number of its own: declare it in [ports.NAME]", p.name)
				continue
			}
			from := orNode(p.get("to"), p.get("static"))
			names[p.name] = c.port(from, p.name, inside, "tcp")
			if hasStatic {
				c.public(p.get("static"), names[p.name], static)
			}
			p.get("to").take()
		}
	}
	t.task.get("config", "ports").drop("an instance has all ports of the group")
	return names
}

func (c *conversion) nomadService(s *node, ports map[string]string) {
	s.get("name").drop("the app is <name>.internal in the environment's DNS")
	s.get("tags").drop("services have no tags")
	s.get("provider").drop("names are in the environment's DNS")
	s.get("connect").drop("there is no mesh; an environment's network is its own")
	label, _ := s.get("port").scalar()
	port := ports[label]
	if port == "" {
		if number, err := strconv.ParseInt(label, 10, 32); err == nil && number > 0 {
			port = c.portNamed(number, "tcp")
		}
	}
	if port != "" {
		s.get("port").take()
	}
	for _, check := range s.all("check") {
		c.nomadCheck(check, port, ports)
	}
}

func (c *conversion) nomadCheck(check *node, port string, ports map[string]string) {
	if !c.ready(check) {
		return
	}
	const table = "health.ready"
	kind, _ := check.get("type").scalar()
	if n := check.get("port"); n != nil {
		label, _ := n.scalar()
		port = ports[label]
	}
	set := func(key, value string) {
		c.draft.settings = append(c.draft.settings, setting{table: table, key: key, value: value, from: check})
	}
	switch {
	case kind == "script":
		command, ok := check.get("command").scalar()
		args, known := check.get("args").strings()
		if !ok || check.get("args") != nil && !known {
			check.drop("its command is not known")
			return
		}
		set("type", `"exec"`)
		set("command", texts(append([]string{command}, args...)))
		check.get("command").take()
		check.get("args").take()
	case kind != "http" && kind != "tcp":
		check.drop("Pinnace has checks of type http, tcp and exec")
		return
	case port == "":
		check.drop("its port is none that was carried over")
		return
	default:
		set("type", text(kind))
		set("port", text(port))
		check.get("port").take()
	}
	check.used = true
	check.get("type").take()
	if kind == "http" {
		c.str(check.get("path"), table, "path")
		if method, ok := check.get("method").scalar(); ok && strings.EqualFold(method, "get") {
			check.get("method").take()
		}
		if protocol, _ := check.get("protocol").scalar(); protocol == "http" {
			check.get("protocol").take()
		}
	}
	c.time(check.get("interval"), table, "interval")
	c.time(check.get("timeout"), table, "timeout")
	for _, count := range [][2]string{{"success_before_passing", "pass"}, {"failures_before_critical", "fail"}} {
		if n := check.get(count[0]); n != nil {
			if before, ok := n.integer(); ok && before >= 0 && before < 1000 {
				// Nomad counts those that come before; zero means the first.
				c.draft.set(n, table, count[1], strconv.FormatInt(before+1, 10))
			}
		}
	}
	check.get("name").drop("checks have no names")
	check.get("check_restart").drop("a failing [health.live] restarts the instance")
	check.get("on_update").drop("a check that fails is a failure")
	check.get("header").drop("checks send no headers of their own")
	check.get("method").drop("checks use GET")
}
