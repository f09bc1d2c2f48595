package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// rules checks what no key can tell by itself. A value that is wrong already is zero here and says nothing.
func (d *decoder) rules() {
	d.portRules()
	d.probeRules("health.ready", d.m.Health.Ready)
	d.probeRules("health.live", d.m.Health.Live)
	d.rolloutRules()
	d.mountRules()
	d.variableRules()
}

// where finds the place of the first of several keys that is written down. For a table of named tables, the
// path is that of the table.
func (m *Manifest) where(name string, paths ...string) span {
	for _, p := range paths {
		for _, o := range m.origins {
			if o.key.Path == p && o.name == name {
				return o.at
			}
		}
	}
	return span{}
}

// complain reports a broken rule at the first of the keys that is written down. paths have "*" for the name.
func (d *decoder) complain(name string, f fault, paths ...string) {
	d.reportAt(d.m.where(name, paths...), strings.Replace(paths[0], "*", displayName(name), 1), f)
}

func (d *decoder) portRules() {
	type number struct {
		protocol string
		port     int
	}
	type door struct{ name, edge string }
	inside, outside := make(map[number]string), make(map[number]door)
	for _, name := range d.portsInOrder() {
		p := d.m.Ports[name]
		if p.Port != 0 && p.Protocol != "" {
			at := number{p.Protocol, p.Port}
			if first, ok := inside[at]; ok {
				d.complain(name, fault{
					code: CodeDuplicatePort, message: fmt.Sprintf("%s/%d is the port of ports.%s already", at.protocol, at.port, displayName(first)),
					why: "one process listens once on a number",
				}, "ports.*.port")
			} else {
				inside[at] = name
			}
		}
		if p.Protocol == ProtocolUDP && p.Edge == EdgeSNI {
			d.complain(name, fault{
				code: CodeNotApplicable, message: `"sni" does not apply to udp`, why: "the host name is part of a TLS handshake over TCP", fix: `write edge = "raw"`,
			}, "ports.*.edge")
			continue
		}
		if p.PublicPort == 0 || p.Edge == "" {
			continue
		}
		at := number{p.Protocol, p.PublicPort}
		first, taken := outside[at]
		if taken && (p.Edge == EdgeRaw || first.edge == EdgeRaw) {
			d.complain(name, fault{
				code: CodeDuplicatePort, message: fmt.Sprintf("%s/%d is the public port of ports.%s already", at.protocol, at.port, displayName(first.name)),
				why: `a public port leads to one place; only ports with edge = "sni" can share one, by host name`,
			}, "ports.*.public_port", "ports.*.edge", "ports.*.expose", "ports")
		} else if !taken {
			outside[at] = door{name, p.Edge}
		}
	}
}

// portsInOrder gives the names of the ports in the order of the text, so that the second of two is blamed.
func (d *decoder) portsInOrder() []string {
	names := slices.Sorted(maps.Keys(d.m.Ports))
	slices.SortStableFunc(names, func(a, b string) int { return d.m.where(a, "ports").off - d.m.where(b, "ports").off })
	return names
}

func (d *decoder) probeRules(at string, p *Probe) {
	if p == nil {
		return
	}
	if p.Timeout != 0 && p.Interval != 0 && p.Timeout > p.Interval {
		d.complain("", fault{
			code: CodeTimes, message: fmt.Sprintf("a timeout of %s is longer than the interval of %s", showDuration(p.Timeout), showDuration(p.Interval)),
			why: "probes of one instance do not overlap", fix: "make timeout at most " + showDuration(p.Interval) + ", or the interval longer",
		}, at+".timeout", at+".interval")
	}
	if p.Port == "" {
		return
	}
	port, ok := d.m.Ports[p.Port]
	switch {
	case !ok:
		names := slices.Sorted(maps.Keys(d.m.Ports))
		f := fault{code: CodeUnknownPort, message: quote(p.Port) + " is not the name of a port"}
		switch near := nearest(p.Port, names); {
		case near != "":
			f.suggestion = quote(near)
		case len(names) == 0:
			f.fix = "declare it: [ports." + displayName(p.Port) + "]"
		default:
			f.fix = "the ports here are " + strings.Join(names, ", ")
		}
		d.complain("", f, at+".port")
	case port.Protocol == ProtocolUDP:
		d.complain("", fault{
			code: CodeNotApplicable, message: fmt.Sprintf("%s is a udp port; a probe of type %s needs a tcp port", displayName(p.Port), p.Type),
			fix: `use type = "exec" to probe over udp with a command of your own`,
		}, at+".port")
	}
}

func (d *decoder) rolloutRules() {
	r := d.m.Rollout
	if sum := r.BootTimeout + r.Hold; r.BootTimeout != 0 && r.Deadline != 0 && sum > r.Deadline {
		d.complain("", fault{
			code: CodeTimes, message: fmt.Sprintf("boot_timeout %s + hold %s is longer than the deadline of %s", showDuration(r.BootTimeout), showDuration(r.Hold), showDuration(r.Deadline)),
			why: "the first instance could be good, and the rollout over before it counts", fix: "make the deadline at least " + showDuration(sum),
		}, "rollout.deadline", "rollout.hold", "rollout.boot_timeout")
	}
	if len(d.m.Volumes) > 0 && (r.Strategy == StrategyCanary || r.Strategy == StrategyBlueGreen) {
		d.complain("", fault{
			code: CodeVolumeRollout, message: quote(r.Strategy) + " does not go with a volume",
			why: "both run the old and the new release side by side, and a volume has one holder at a time",
			fix: `use "rolling", which moves the volume from the old instance to the new one, or "recreate"`,
		}, "rollout.strategy")
	}
}

// reservedDirs are the system's; a secret may be in the last one.
var reservedDirs = [...]string{"/proc", "/sys", "/dev", "/run"}

// mount is a place in the instance's file system that a secret or a volume takes.
type mount struct {
	table, name, path string
	reserved          []string
	at                span
}

func (d *decoder) mountRules() {
	if len(d.m.Secrets)+len(d.m.Volumes) == 0 {
		return
	}
	mounts := make([]mount, 0, len(d.m.Secrets)+len(d.m.Volumes))
	for name, s := range d.m.Secrets {
		mounts = append(mounts, mount{"secrets", name, s.Path, reservedDirs[:3], d.m.where(name, "secrets.*.path")})
	}
	for name, v := range d.m.Volumes {
		mounts = append(mounts, mount{"volumes", name, v.Path, reservedDirs[:], d.m.where(name, "volumes.*.path")})
	}
	slices.SortFunc(mounts, func(a, b mount) int {
		if a.at.off != b.at.off {
			return a.at.off - b.at.off
		}
		return strings.Compare(a.table+"."+a.name, b.table+"."+b.name)
	})
	taken := make([]mount, 0, len(mounts))
	for _, m := range mounts {
		if m.path == "" {
			continue
		}
		f := fault{code: CodeBadMount}
		if r := m.isReserved(); r != "" {
			f.message = quote(m.path) + " is reserved"
			f.why = r + " belongs to the system"
			d.complain(m.name, f, m.table+".*.path")
			continue
		}
		for _, other := range taken {
			if within(m.path, other.path) || within(other.path, m.path) {
				f.message = fmt.Sprintf("%s overlaps %s of %s.%s", quote(m.path), quote(other.path), other.table, displayName(other.name))
				f.why = "one of the two would hide the other"
				d.complain(m.name, f, m.table+".*.path")
				break
			}
		}
		taken = append(taken, m)
	}
}

// isReserved gives the reserved place that the mount would cover or lie in, or "".
func (m mount) isReserved() string {
	if m.path == "/" || m.path == "/run" {
		return m.path
	}
	for _, r := range m.reserved {
		if within(m.path, r) {
			return r
		}
	}
	return ""
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	return dir != "" && (p == dir || strings.HasPrefix(p, dir+"/"))
}

// variableRules makes sure that every variable of the process gets its value from one place.
func (d *decoder) variableRules() {
	from := make(map[string]string, len(d.m.Env))
	for name := range d.m.Env {
		from[name] = "env"
	}
	claim := func(names []string, source, owner, path string) {
		for _, v := range names {
			if first, ok := from[v]; ok && first != source {
				at := d.m.where(owner, path)
				if n := d.element(owner, path, v); n != nil {
					at = n.at
				}
				d.reportAt(at, strings.Replace(path, "*", displayName(owner), 1), fault{
					code: CodeNameTwice, message: fmt.Sprintf("%s is set by %s already", v, first),
					why: "which of the two the process gets would be a guess", fix: "name it in one place",
				})
				continue
			}
			from[v] = source
		}
	}
	claim(d.m.Vars, "vars", "", "vars")
	for _, name := range slices.Sorted(maps.Keys(d.m.Secrets)) {
		claim(d.m.Secrets[name].Env, "secrets."+displayName(name)+".env", name, "secrets.*.env")
	}
}

// element finds a member of a list of strings, by the path of the list with "*" for the name.
func (d *decoder) element(name, path, text string) *node {
	n := d.root
	for part := range strings.SplitSeq(path, ".") {
		if part == "*" {
			part = name
		}
		if n = n.child(part); n == nil {
			return nil
		}
	}
	for _, item := range n.items {
		if item.text == text {
			return item
		}
	}
	return nil
}

// warnings says what is allowed and seldom right. top is the scope of the whole manifest.
func (d *decoder) warnings(root *node, top *scope) {
	health := root.child("health")
	unchecked := health == nil && !slices.Contains(top.excused, "health") || health != nil && health.kind == kindTable && health.child("ready") == nil
	if unchecked {
		f := fault{
			code: CodeNoReadyCheck, message: "no ready check: an instance counts as ready when every TCP port accepts a connection",
			why: "a program may listen before it can answer", fix: "add [health.ready]",
		}
		if !d.hasTCPPort() {
			f.message = "no ready check: an instance counts as ready when its process stays alive for " + showDuration(d.m.Rollout.Hold)
			if d.m.Rollout.Hold == 0 {
				f.message = "no ready check: an instance counts as ready as soon as its process has started"
			}
			f.why = "a program may live and not work"
		}
		d.complain("", f, "health.ready", "health")
	}
	user, _, _ := strings.Cut(d.m.User, ":")
	if user == "root" || user == "0" {
		d.complain("", fault{
			code: CodeRootUser, message: "the process runs as root", why: "most programs need no root, even in a machine of their own",
			fix: `name another user, such as "10001:10001"`,
		}, "user")
	}
}

func (d *decoder) hasTCPPort() bool {
	for _, p := range d.m.Ports {
		if p.Protocol == ProtocolTCP {
			return true
		}
	}
	return false
}

func showDuration(d time.Duration) string { return formatDuration(d.Milliseconds()) }

// CheckCount checks the manifest against the number of instances that an environment wants of it.
func (m *Manifest) CheckCount(count int) Problems {
	list := &problemList{src: m.source, noText: m.source == ""}
	for _, name := range slices.Sorted(maps.Keys(m.Volumes)) {
		if m.Volumes[name].Per != PerWorkload || count <= 1 {
			continue
		}
		list.add(m.where(name, "volumes.*.per", "volumes"), Problem{
			Code: CodeTooMany, Key: "volumes." + name + ".per",
			Message: fmt.Sprintf("\"workload\" with %d instances", count),
			Why:     "one volume for the whole workload has one holder, so there can be one instance",
			Fix:     `scale to 1, or use per = "instance"`,
		})
	}
	list.problems.sort()
	return list.problems
}
