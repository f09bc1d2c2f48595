package manifest

// The second half of the table: what goes beyond one instance.

func rolloutKeys() []Key {
	return []Key{
		{Path: "rollout", Type: Table, Effect: EffectNone, Doc: "How a new release takes the place of the old one."},
		{
			Path: "rollout.strategy", decides: true, Type: String, Default: `"rolling"`, Values: []string{StrategyRolling, StrategyCanary, StrategyBlueGreen, StrategyRecreate}, Effect: EffectNone,
			Doc: "How new instances take the place of old ones: some at a time (`rolling`), a few first to try them (`canary`), all of them beside the old ones (`blue-green`), or after the old ones have stopped (`recreate`). With a volume, `rolling` stops the old instance, moves the volume, and starts the new one, ordinal by ordinal; `canary` and `blue-green` are refused.",
			ref: func(s *scope) any { return &s.m.Rollout.Strategy },
		},
		{
			Path: "rollout.max_parallel", Type: Integer, Default: `1`, Min: 1, Max: 100, Effect: EffectNone,
			Doc: "Instances in flight at a time.",
			ref: func(s *scope) any { return &s.m.Rollout.MaxParallel },
		},
		{
			Path: "rollout.boot_timeout", Type: Duration, Default: `"60s"`, Min: second, Max: 30 * minute, Effect: EffectNone,
			Doc: "Time from start to first ready, per instance.",
			ref: func(s *scope) any { return &s.m.Rollout.BootTimeout },
		},
		{
			Path: "rollout.hold", Type: Duration, Default: `"10s"`, Min: 0, Max: hour, Effect: EffectNone,
			Doc: "Time that an instance must stay ready before it counts.",
			ref: func(s *scope) any { return &s.m.Rollout.Hold },
		},
		{
			Path: "rollout.deadline", Type: Duration, Default: `"10m"`, Min: 10 * second, Max: 24 * hour, Effect: EffectNone,
			Doc: "Time for the whole rollout, at least `boot_timeout` + `hold`.",
			ref: func(s *scope) any { return &s.m.Rollout.Deadline },
		},
		{
			Path: "rollout.on_failure", Type: String, Default: `"rollback"`, Values: []string{OnFailureRollback, OnFailurePause}, Effect: EffectNone,
			Doc: "Back to the previous deployment, or stop and wait for a person.",
			ref: func(s *scope) any { return &s.m.Rollout.OnFailure },
		},
		{
			Path: "rollout.canary", Type: Integer, Default: `1`, Min: 1, Max: 100, Effect: EffectNone,
			Doc:  "Instances of the new release to try first.",
			When: Condition{{Key: "strategy", Values: []string{StrategyCanary}}},
			ref:  func(s *scope) any { return &s.m.Rollout.Canary },
		},
		{
			Path: "rollout.before", Type: Table, Effect: EffectNone, present: beforePresence,
			Doc: "A one-off in a fresh VM with the same image, env and secrets, and no volumes. A non-zero exit aborts the rollout with nothing touched. Not run on a rollback.",
		},
		{
			Path: "rollout.before.command", Type: Argv, Example: `["/app/server", "migrate"]`, Required: true, Min: 1, Max: 256, Effect: EffectNone,
			Doc: "Program and arguments. No shell is involved.",
			ref: func(s *scope) any { return &s.m.Rollout.Before.Command },
		},
		{
			Path: "rollout.before.timeout", Type: Duration, Default: `"5m"`, Min: second, Max: hour, Effect: EffectNone,
			Doc: "Time that it may take.",
			ref: func(s *scope) any { return &s.m.Rollout.Before.Timeout },
		},
	}
}

func secretKeys() []Key {
	files := Condition{{Key: "path"}}
	return []Key{
		{
			Path: "secrets", Type: Tables, Max: 16, Bounds: "names `[a-z][a-z0-9-]{0,39}`", Effect: EffectReplace,
			Doc:   "Bundles of the environment that this workload gets. Values are never in a manifest.",
			check: entryName, Pattern: patternName, elements: secretElements(),
		}, {
			Path: "secrets.*.path", decides: true, Type: String, Example: `"/run/secrets/api"`, Bounds: "absolute path, apart from every other mount", Effect: EffectReplace,
			Doc:          "Where the bundle appears as a file or a directory, in memory only.",
			RequiredWhen: Condition{{Key: "env", Not: true}},
			check:        absolutePath, Pattern: patternPath, ref: func(s *scope) any { return &s.secret.Path },
		}, {
			Path: "secrets.*.env", decides: true, Type: StringSet, Default: `[]`, Max: 256, Bounds: "names as in `env`", Effect: EffectReplace,
			Doc:   "Keys of the bundle that become variables of the process.",
			check: variableName, Pattern: patternVariable, Except: patternReserved, ref: func(s *scope) any { return &s.secret.Env },
		}, {
			Path: "secrets.*.format", Type: String, Default: `"dir"`, Values: []string{FormatJSON, FormatDotenv, FormatDir}, Effect: EffectReplace,
			Doc:  "One JSON file, one dotenv file, or a directory with one file per key.",
			When: files,
			ref:  func(s *scope) any { return &s.secret.Format },
		}, {
			Path: "secrets.*.mode", Type: Mode, Default: `"0400"`, Min: 0, Max: 0o777, Effect: EffectReplace,
			Doc:  "Permissions of the files: four octal digits, no setuid, setgid or sticky bit.",
			When: files,
			ref:  func(s *scope) any { return &s.secret.Mode },
		}, {
			Path: "secrets.*.owner", Type: String, Bounds: "`uid[:gid]` or names", Effect: EffectReplace, ImageDefault: "the user of the process",
			Doc:   "Owner of the files.",
			When:  files,
			check: userSpec, Pattern: patternUser(), ref: func(s *scope) any { return &s.secret.Owner },
		}, {
			Path: "secrets.*.require", Type: StringSet, Default: `[]`, Max: 256, Bounds: "`[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`", Effect: EffectNone,
			Doc:   "Keys that must be in the bundle. A deploy is refused before anything starts when one is missing.",
			check: bundleKey, Pattern: patternBundleKey, ref: func(s *scope) any { return &s.secret.Require },
		}, {
			Path: "secrets.*.on_change", Type: String, Default: `"rollout"`, Bounds: "`rollout`, `none`, or `signal:` and a signal as in `stop.signal`", Effect: EffectInPlace,
			Doc:   "What a new version of the bundle does: the same gated rollout as a deploy, a signal to the process, or nothing.",
			check: onChange, Pattern: patternOnChange(), ref: func(s *scope) any { return &s.secret.OnChange },
		},
	}
}

func volumeKeys() []Key {
	return []Key{
		{
			Path: "volumes", Type: Tables, Max: 8, Bounds: "names `[a-z][a-z0-9-]{0,39}`", Effect: EffectData,
			Doc:   "Disks that outlive their instance.",
			check: entryName, Pattern: patternName, elements: volumeElements(),
		}, {
			Path: "volumes.*.path", Type: String, Example: `"/data"`, Required: true, Bounds: "absolute path, not `/` and not in `/proc`, `/sys`, `/dev`, `/run`; apart from every other mount", Effect: EffectReplace,
			Doc:   "Where it is mounted.",
			check: absolutePath, Pattern: patternPath, ref: func(s *scope) any { return &s.volume.Path },
		}, {
			Path: "volumes.*.size", Type: Size, Example: `"10GiB"`, Required: true, Min: 64 * mib, Max: 16 * tib, Effect: EffectData,
			Doc: "Can grow later, never shrink.",
			ref: func(s *scope) any { return &s.volume.SizeBytes },
		}, {
			Path: "volumes.*.per", Type: String, Default: `"instance"`, Values: []string{PerInstance, PerWorkload}, Effect: EffectData,
			Doc: "One volume per ordinal, or one that exactly one instance may hold.",
			ref: func(s *scope) any { return &s.volume.Per },
		}, {
			Path: "volumes.*.read_only", Type: Bool, Default: `false`, Effect: EffectReplace,
			Doc: "Mount it read-only.",
			ref: func(s *scope) any { return &s.volume.ReadOnly },
		}, {
			Path: "volumes.*.on_missing", Type: String, Default: `"create"`, Values: []string{OnMissingCreate, OnMissingFail}, Effect: EffectNone,
			Doc: "Make the volume when there is none, or refuse the deploy.",
			ref: func(s *scope) any { return &s.volume.OnMissing },
		},
	}
}

func networkKeys() []Key {
	return []Key{
		{Path: "network", Type: Table, Effect: EffectRouting, Doc: "What an instance may reach."},
		{
			Path: "network.egress", Type: String, Default: `"all"`, Values: []string{EgressAll, EgressInternal, EgressNone}, Effect: EffectRouting,
			Doc: "What an instance may reach beside the apps of its environment, which it always may: everything outside, nothing, or " +
				"nothing and no names of the outside either (`none` stops the forwarding of DNS).",
			ref: func(s *scope) any { return &s.m.Network.Egress },
		},
	}
}
