package manifest

import "slices"

// Units of the bounds below, in canonical units: bytes, milliseconds, thousandths of a vCPU.
const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40

	ms     = 1
	second = 1000
	minute = 60 * second
	hour   = 60 * minute
)

// table is the manifest. Everything that Pinnace knows about a key is in its row: the parser, the defaults,
// the canonical form and docs/specs/manifest/manifest-schema.md are made from it.
//
// The rows of a released schema version are frozen. A row may be added, with Since; a default, a bound that
// gets tighter, or another meaning needs a new schema version.
func table() []Key {
	return slices.Concat(
		workloadKeys(),
		resourceKeys(),
		portKeys(),
		[]Key{{Path: "health", Type: Table, Effect: EffectInPlace, Doc: "How Pinnace learns whether an instance works."}},
		probeKeys("health.ready", "Gates traffic and the rollout. Absent: every declared TCP port must accept a connection; with no TCP port, the process must be started and stay alive for `rollout.hold`.",
			func(m *Manifest) **Probe { return &m.Health.Ready }),
		probeKeys("health.live", "A failing liveness probe restarts the instance. It starts after the first pass of the ready check, so there is no grace period to guess. Absent: no liveness probe.",
			func(m *Manifest) **Probe { return &m.Health.Live }),
		rolloutKeys(),
		secretKeys(),
		volumeKeys(),
		networkKeys(),
	)
}

func workloadKeys() []Key {
	return []Key{
		{
			Path: "schema", Type: String, Required: true, Values: []string{SchemaV1}, Effect: EffectNone,
			Doc: "Version of this format.",
			ref: func(s *scope) any { return &s.m.Schema },
		}, {
			Path: "name", Type: String, Example: `"api"`, Required: true, Bounds: "`[a-z][a-z0-9-]{0,39}`", Effect: EffectReplace,
			Doc:   "The app. It is `<name>.internal` in the environment's DNS; another name is another app.",
			check: appName, Pattern: patternName, ref: func(s *scope) any { return &s.m.Name },
		}, {
			Path: "entrypoint", Type: Argv, Min: 1, Max: 256, Effect: EffectReplace, ImageDefault: "the image's Entrypoint",
			Doc: "The program and its first arguments. No shell is involved. Setting it clears the image's Cmd.",
			ref: func(s *scope) any { return &s.m.Entrypoint },
		}, {
			Path: "command", Type: Argv, Min: 0, Max: 1024, Effect: EffectReplace, ImageDefault: "the image's Cmd, unless `entrypoint` is set",
			Doc: "Arguments after the entrypoint. `[]` means none, which is not the same as leaving it out.",
			ref: func(s *scope) any { return &s.m.Command },
		}, {
			Path: "workdir", Type: String, Bounds: "absolute path", Effect: EffectReplace, ImageDefault: "the image's WorkingDir, else `/`",
			Doc:   "Directory that the process starts in. Made if it does not exist.",
			check: absolutePath, Pattern: patternPath, ref: func(s *scope) any { return &s.m.Workdir },
		}, {
			Path: "user", Type: String, Bounds: "`uid[:gid]` or names", Effect: EffectReplace, ImageDefault: "the image's User, else 0",
			Doc:   "Who the process runs as. Names are looked up in the image.",
			check: userSpec, Pattern: patternUser(), ref: func(s *scope) any { return &s.m.User },
		}, {
			Path: "arch", Type: StringSet, Min: 1, Max: 8, Values: []string{"amd64", "arm64"}, Effect: EffectReplace, ImageDefault: "every architecture that the image has",
			Doc:   "Architectures to run on. Each must be in the image's index.",
			check: archName, ref: func(s *scope) any { return &s.m.Arch },
		}, {
			Path: "restart", Type: String, Default: `"always"`, Values: []string{string(RestartAlways), string(RestartOnFailure), string(RestartNever)}, Effect: EffectInPlace,
			Doc: "What happens when the process ends by itself. Restarts back off from 1 s, doubling up to 60 s; ten minutes up start over at 1 s. With `never`, exit code 0 is completed, not failed.",
			ref: func(s *scope) any { return (*string)(&s.m.Restart) },
		}, {
			Path: "vars", Type: StringSet, Default: `[]`, Max: 256, Bounds: "names as in `env`", Effect: EffectReplace,
			Doc:   "Names of variables that the environment must supply. They are not secret. Nothing else is injected.",
			check: variableName, Pattern: patternVariable, Except: patternReserved, ref: func(s *scope) any { return &s.m.Vars },
		}, {
			Path: "env", Type: StringMap, Max: 256, Bounds: "names `[A-Za-z_][A-Za-z0-9_]*`, not `PINNACE_*`; 128 KiB in all", Effect: EffectReplace,
			Doc:   "Variables of the process, string to string, taken literally. They are added to the image's Env.",
			check: variableName, Pattern: patternVariable, Except: patternReserved, ref: func(s *scope) any { return &s.m.Env },
		},
	}
}

func resourceKeys() []Key {
	return []Key{
		{Path: "resources", Type: Table, Effect: EffectReplace, Doc: "What one instance gets."},
		{
			Path: "resources.cpu", Type: CPU, Default: `0.25`, Min: 50, Max: 64000, Effect: EffectReplace,
			Doc: "vCPUs requested, with up to three decimals. A weight: it may be oversubscribed.",
			ref: func(s *scope) any { return &s.m.Resources.CPUMilli },
		},
		{
			Path: "resources.memory", Type: Size, Example: `"256MiB"`, Required: true, Min: 96 * mib, Max: 256 * gib, Effect: EffectReplace,
			Doc: "RAM of the VM, guest kernel included. A hard cap.",
			ref: func(s *scope) any { return &s.m.Resources.MemoryBytes },
		},
		{
			Path: "resources.disk", Type: Size, Default: `"1GiB"`, Min: 64 * mib, Max: tib, Effect: EffectReplace,
			Doc: "Writable scratch space over the image. Gone when the instance is replaced.",
			ref: func(s *scope) any { return &s.m.Resources.DiskBytes },
		},
		{Path: "stop", Type: Table, Effect: EffectInPlace, Doc: "How an instance is asked to end: leave routing, drain, signal, wait, kill."},
		{
			Path: "stop.signal", Type: String, Values: signals, Effect: EffectInPlace, ImageDefault: "the image's StopSignal, else SIGTERM",
			Doc: "Signal that asks the process to end.",
			ref: func(s *scope) any { return &s.m.Stop.Signal },
		},
		{
			Path: "stop.drain", Type: Duration, Default: `"5s"`, Min: 0, Max: 5 * minute, Effect: EffectInPlace,
			Doc: "Time for open connections to end before the signal. Skipped when nothing routes to the instance.",
			ref: func(s *scope) any { return &s.m.Stop.Drain },
		},
		{
			Path: "stop.timeout", Type: Duration, Default: `"10s"`, Min: second, Max: 15 * minute, Effect: EffectInPlace,
			Doc: "Time between the signal and the kill.",
			ref: func(s *scope) any { return &s.m.Stop.Timeout },
		},
	}
}

func portKeys() []Key {
	public := Condition{{Key: "expose", Values: []string{ExposePublic}}}
	return []Key{
		{
			Path: "ports", Type: Tables, Max: 32, Bounds: "names `[a-z][a-z0-9-]{0,14}`", Effect: EffectRouting,
			Doc:   "Ports that the process listens on.",
			check: portName, Pattern: patternPort, elements: portElements(),
		}, {
			Path: "ports.*.port", Type: Integer, Example: `8080`, Required: true, Min: 1, Max: 65535, Effect: EffectReplace,
			Doc: "Number that the process listens on, unique per protocol.",
			ref: func(s *scope) any { return &s.port.Port },
		}, {
			Path: "ports.*.protocol", decides: true, Type: String, Default: `"tcp"`, Values: []string{ProtocolTCP, ProtocolUDP}, Effect: EffectReplace,
			Doc: "Transport protocol.",
			ref: func(s *scope) any { return &s.port.Protocol },
		}, {
			Path: "ports.*.expose", decides: true, Type: String, Default: `"internal"`, Values: []string{ExposeNone, ExposeInternal, ExposePublic}, Effect: EffectRouting,
			Doc: "Who can reach it: nobody but health checks, the environment, or everyone.",
			ref: func(s *scope) any { return &s.port.Expose },
		}, {
			Path: "ports.*.edge", decides: true, Type: String, Values: []string{EdgeSNI, EdgeRaw}, Effect: EffectRouting,
			Doc:  "How a public port is shared: `sni` passes TLS through by host name, `raw` is a port of its own. `tls` is reserved.",
			When: public,
			DefaultWhen: []Case{
				{When: Condition{{Key: "protocol", Values: []string{ProtocolUDP}}}, Value: `"raw"`},
				{Value: `"sni"`},
			},
			check: edgeValue, ref: func(s *scope) any { return &s.port.Edge },
		}, {
			Path: "ports.*.public_port", Type: Integer, Example: `80`, Min: 1, Max: 65535, Effect: EffectRouting,
			Doc:          "Port that the world connects to. A default: a route of the environment may override it.",
			When:         public,
			RequiredWhen: Condition{{Key: "edge", Values: []string{EdgeRaw}}},
			DefaultWhen:  []Case{{When: Condition{{Key: "edge", Values: []string{EdgeSNI}}}, Value: `443`}},
			ref:          func(s *scope) any { return &s.port.PublicPort },
		}, {
			Path: "ports.*.proxy_protocol", Type: String, Default: `"none"`, Values: []string{ProxyProtocolNone, ProxyProtocolV2}, Effect: EffectReplace,
			Doc:  "Whether connections begin with a PROXY protocol header that carries the client's address.",
			When: slices.Concat(Condition{{Key: "protocol", Values: []string{ProtocolTCP}}}, public),
			ref:  func(s *scope) any { return &s.port.ProxyProtocol },
		},
	}
}

func probeKeys(at, doc string, probe func(*Manifest) **Probe) []Key {
	is := func(types ...string) Condition { return Condition{{Key: "type", Values: types}} }
	return []Key{
		{Path: at, Type: Table, Effect: EffectInPlace, Doc: doc, present: probePresence(probe)},
		{
			Path: at + ".type", decides: true, Type: String, Required: true, Values: []string{ProbeHTTP, ProbeTCP, ProbeExec}, Effect: EffectInPlace,
			Doc: "An HTTP GET, a connection, or a command run inside the VM.",
			ref: func(s *scope) any { return &s.probe.Type },
		},
		{
			Path: at + ".port", Type: String, Example: `"web"`, Bounds: "name of a port in `ports`", Effect: EffectInPlace,
			Doc:  "Name, not number, of the TCP port to probe. A port with `proxy_protocol` gets a LOCAL header.",
			When: is(ProbeHTTP, ProbeTCP), RequiredWhen: is(ProbeHTTP, ProbeTCP),
			check: portReference, Pattern: patternPort, ref: func(s *scope) any { return &s.probe.Port },
		},
		{
			Path: at + ".path", Type: String, Default: `"/"`, Bounds: "begins with `/`", Effect: EffectInPlace,
			Doc:   "Path to GET, with a query if need be.",
			When:  is(ProbeHTTP),
			check: requestPath, Pattern: patternRequest, ref: func(s *scope) any { return &s.probe.Path },
		},
		{
			Path: at + ".status", Type: IntegerSet, Default: `[200]`, Min: 1, Max: 64, Bounds: "each 200..599, no 3xx", Effect: EffectInPlace,
			Doc:  "Status codes that pass. Redirects are not followed: they fail.",
			When: is(ProbeHTTP),
			ref:  func(s *scope) any { return &s.probe.Status },
		},
		{
			Path: at + ".command", Type: Argv, Example: `["/app/server", "ping"]`, Min: 1, Max: 256, Effect: EffectInPlace,
			Doc:  "Program and arguments; exit code 0 passes. No shell is involved.",
			When: is(ProbeExec), RequiredWhen: is(ProbeExec),
			ref: func(s *scope) any { return &s.probe.Command },
		},
		{
			Path: at + ".interval", Type: Duration, Default: `"5s"`, Min: second, Max: 5 * minute, Effect: EffectInPlace,
			Doc: "Time from the start of one probe to the start of the next.",
			ref: func(s *scope) any { return &s.probe.Interval },
		},
		{
			Path: at + ".timeout", Type: Duration, Default: `"2s"`, Min: 100 * ms, Max: 60 * second, Effect: EffectInPlace,
			Doc: "Time that one probe may take, at most `interval`.",
			ref: func(s *scope) any { return &s.probe.Timeout },
		},
		{
			Path: at + ".pass", Type: Integer, Default: `1`, Min: 1, Max: 10, Effect: EffectInPlace,
			Doc: "Successes in a row that make the check pass.",
			ref: func(s *scope) any { return &s.probe.Pass },
		},
		{
			Path: at + ".fail", Type: Integer, Default: `3`, Min: 1, Max: 30, Effect: EffectInPlace,
			Doc: "Failures in a row that make the check fail.",
			ref: func(s *scope) any { return &s.probe.Fail },
		},
	}
}
