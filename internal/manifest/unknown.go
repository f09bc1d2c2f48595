package manifest

import (
	"strings"
	"sync"
)

// unknown reports a key that is not in the table, with the best that can be said about it.
func (d *decoder) unknown(t *spec, n *node, s *scope) {
	path := displayName(n.key)
	if t.Path != "" {
		path = t.path(s.name) + "." + path
		if t.Type == Tables {
			path = t.Path + "." + displayName(s.name) + "." + displayName(n.key)
		}
	}
	f := fault{code: CodeUnknownKey, message: "unknown key"}
	folded := strings.ReplaceAll(strings.ToLower(n.key), "-", "_")
	switch {
	case len(n.key) > maxShown:
	case foldedChild(t, n.key) != "":
		f.code = CodeWrongCase
		f.message = "keys are lower case"
		f.suggestion = foldedChild(t, n.key)
	case elsewhere(folded) != (answer{}):
		a := elsewhere(folded)
		f.message = "there is no such key: " + a.message
		f.why, f.fix = a.why, a.fix
	case nearest(folded, names(t.children)) != "":
		f.suggestion = nearest(folded, names(t.children))
	case otherWords[folded] != "":
		f.suggestion = relative(t, otherWords[folded])
	case leaf(folded) != "":
		f.message = "unknown key here"
		f.suggestion = leaf(folded)
	default:
		f.fix = "the keys here are " + strings.Join(names(t.children), ", ")
	}
	if first, _, _ := strings.Cut(f.suggestion, "."); first != "" {
		s.excused = append(s.excused, first)
	}
	d.reportAt(n.keyAt, path, f)
}

// relative shortens a key path for those who are in its table already.
func relative(t *spec, path string) string {
	for _, prefix := range []string{t.Path + ".NAME.", t.Path + "."} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			return rest
		}
	}
	return path
}

func foldedChild(t *spec, key string) string {
	for _, c := range t.children {
		if strings.EqualFold(c.name, key) {
			return c.name
		}
	}
	return ""
}

// leaf finds a key of that name in another table.
func leaf(key string) string {
	return leaves()[key]
}

// leaves gives the path of every key that is not at the top, by its last part; of several, the first.
var leaves = sync.OnceValue(func() map[string]string {
	paths := make(map[string]string)
	for _, k := range table() {
		if _, taken := paths[k.last()]; !taken && k.last() != k.Path {
			paths[k.last()] = strings.Replace(k.Path, "*", "NAME", 1)
		}
	}
	return paths
})

// answer is what to say to somebody who asks for something that a manifest does not have.
type answer struct{ message, why, fix string }

// elsewhere answers for keys that do not exist on purpose.
func elsewhere(key string) answer {
	setting := "it may differ between environments, and the same release runs in all of them"
	isolated := "an instance is a virtual machine of its own, which shares nothing with its host"
	switch key {
	case "image", "build", "dockerfile", "tag", "registry":
		return answer{"the image is not part of a manifest", "a release pairs an image digest with a manifest", "give it to `pinnace release create --image` or `pinnace deploy --image`"}
	case "count", "replicas", "instances", "scale", "min_machines_running", "autoscaling":
		return answer{"the number of instances is a setting of the environment", setting, "use `pinnace scale N`"}
	case "host", "hosts", "hostname", "hostnames", "domain", "domains", "route", "routes":
		return answer{"host names are routes of the environment", setting, "use `pinnace routes`"}
	case "region", "regions", "primary_region", "zone", "zones", "placement", "constraint", "affinity", "node", "node_selector":
		return answer{"where instances run is a setting of the environment", setting, "use `pinnace place`"}
	case "privileged", "cap_add", "cap_drop", "capabilities", "security_opt", "seccomp":
		return answer{"there are no privileges to give", isolated + "; inside it, root has every capability", "set `user` if the process needs root"}
	case "host_path", "hostpath", "bind", "binds", "source", "docker_socket":
		return answer{"nothing of the host can be mounted", isolated, "use a volume for data, a secret for configuration, or put the files into the image"}
	case "devices", "device", "gpu", "gpus":
		return answer{"devices of the host cannot be passed in", isolated, ""}
	case "network_mode", "host_network", "pid", "ipc":
		return answer{"namespaces of the host cannot be shared", isolated, "declare what is reachable in [ports]"}
	case "kernel_args", "kernel", "kernel_cmdline", "sysctls", "initrd", "boot_args":
		return answer{"the kernel and its arguments belong to the platform", "nothing that a workload says reaches a kernel command line", ""}
	case "version":
		return answer{"the version of the format is `schema`, and releases have no version but their id", "", `write schema = "v1"`}
	case "secret_values", "password", "token":
		return answer{"values of secrets are never in a manifest", "a manifest is stored in the log and shown to everyone who may read it", "use `pinnace secrets` and name the bundle in [secrets]"}
	case "depends_on", "links", "services", "processes", "init_containers", "sidecars", "containers":
		return answer{"a manifest is one workload with one process", "every workload is deployed, scaled and rolled back by itself", "write one manifest for each; they find each other as NAME.internal"}
	case "labels", "tags", "annotations", "metadata":
		return answer{"a workload has no labels", "every key of a manifest has an effect", "use comments"}
	case "grace_period", "start_period", "initial_delay", "initial_delay_seconds":
		return answer{"there is no grace period", "the liveness probe starts after the first pass of the ready check", "set `rollout.boot_timeout` to bound the start"}
	case "swap", "swap_size_mb":
		return answer{"an instance has no swap", "", "set `resources.memory`"}
	case "startup":
		return answer{"there is no startup probe", "the liveness probe starts after the first pass of the ready check", "set `rollout.boot_timeout` to bound the start"}
	default:
		return answer{}
	}
}

// otherWords are what other systems call what a manifest has.
var otherWords = map[string]string{
	"app": "name", "id": "name", "cmd": "command", "args": "command", "exec": "entrypoint", "run": "entrypoint", "working_dir": "workdir", "cwd": "workdir",
	"environment": "env", "envs": "env", "variables": "vars", "platform": "arch", "platforms": "arch", "architecture": "arch", "architectures": "arch", "restart_policy": "restart",
	"vm": "resources", "limits": "resources", "cpus": "resources.cpu", "mem": "resources.memory", "ram": "resources.memory", "mem_limit": "resources.memory",
	"kill_signal": "stop.signal", "stop_signal": "stop.signal", "kill_timeout": "stop.timeout", "stop_grace_period": "stop.timeout", "shutdown_delay": "stop.drain",
	"http_service": "ports", "listen": "ports", "expose": "ports", "internal_port": "ports.NAME.port", "container_port": "ports.NAME.port", "host_port": "public_port", "external_port": "public_port", "published": "public_port", "proxy_proto": "proxy_protocol",
	"healthcheck": "health", "checks": "health", "readiness": "health.ready", "readiness_probe": "health.ready", "liveness": "health.live", "liveness_probe": "health.live",
	"retries": "fail", "failure_threshold": "fail", "success_threshold": "pass", "period": "interval", "codes": "status", "url": "path", "test": "command",
	"deploy": "rollout", "update": "rollout", "update_config": "rollout", "max_unavailable": "rollout.max_parallel", "min_healthy_time": "rollout.hold", "healthy_deadline": "rollout.boot_timeout", "progress_deadline": "rollout.deadline", "release_command": "rollout.before.command", "auto_revert": "rollout.on_failure",
	"mounts": "volumes", "mount": "volumes", "disks": "volumes", "destination": "path", "target": "path", "mountpoint": "path", "initial_size": "size", "capacity": "size", "readonly": "read_only", "ro": "read_only",
	"permissions": "mode", "perms": "mode", "uid": "owner", "keys": "require",
	"net": "network", "outbound": "network.egress",
}

// nearest finds the word that s was most likely meant to be, or "": at most a third of it may differ. A signal
// is found without its SIG.
func nearest(s string, words []string) string {
	if len(s) > 40 {
		return ""
	}
	best, bestDistance := "", 1+max(len(s), 3)/3
	for _, w := range words {
		if strings.EqualFold(s, w) || len(s) > 2 && strings.HasSuffix(w, strings.ToUpper(s)) {
			return w
		}
		if d := distance(s, w); d < bestDistance {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance counts the insertions, deletions, changes and swaps of neighbours between two short texts.
func distance(a, b string) int {
	older := make([]int, len(b)+1)
	old := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(old[j]+1, row[j-1]+1, old[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(b)]
}
