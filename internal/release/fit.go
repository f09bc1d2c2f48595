package release

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// The codes of what is wrong between an image and a manifest. They are stable, as those of manifests are.
const (
	CodeNoArchitecture = "E300"
	CodeBadConfig      = "E301"
	CodeNothingToRun   = "E302"
	CodeNoCommand      = "E303"
	CodeNotExecutable  = "E304"
	CodeNoInterpreter  = "E305"
	CodeOtherMachine   = "E306"
	CodeNoUser         = "E307"
	CodeNoGroup        = "E308"
	CodeBadSignal      = "E309"
	CodeBadWorkdir     = "E310"
	CodeExpose         = "W300"
	CodeVolume         = "W301"
	CodeHealthcheck    = "W302"
	CodeLabels         = "W303"
	CodeBuildOnly      = "W304"
	CodeImageRoot      = "W310"
	CodeImageReserved  = "W311"
)

// ImageCodes lists the codes of CheckImage with their meanings.
func ImageCodes() []manifest.CodeMeaning {
	return []manifest.CodeMeaning{
		{Code: CodeNoArchitecture, Meaning: "the image has nothing for an architecture that the manifest asks for"},
		{Code: CodeBadConfig, Meaning: "the image's config cannot be used"},
		{Code: CodeNothingToRun, Meaning: "neither image nor manifest says what to run"},
		{Code: CodeNoCommand, Meaning: "the image has no such program"},
		{Code: CodeNotExecutable, Meaning: "the program cannot be executed by the user"},
		{Code: CodeNoInterpreter, Meaning: "the program's interpreter or dynamic loader is not in the image"},
		{Code: CodeOtherMachine, Meaning: "the program is for another architecture, or no program at all"},
		{Code: CodeNoUser, Meaning: "the image has no such user"},
		{Code: CodeNoGroup, Meaning: "the image has no such group"},
		{Code: CodeBadSignal, Meaning: "the image's StopSignal is no signal"},
		{Code: CodeBadWorkdir, Meaning: "the working directory cannot be one"},
		{Code: CodeExpose, Meaning: "warning: EXPOSE has no effect"},
		{Code: CodeVolume, Meaning: "warning: VOLUME has no effect"},
		{Code: CodeHealthcheck, Meaning: "warning: HEALTHCHECK has no effect"},
		{Code: CodeLabels, Meaning: "warning: labels have no effect"},
		{Code: CodeBuildOnly, Meaning: "warning: SHELL and ONBUILD are for builds"},
		{Code: CodeImageRoot, Meaning: "warning: the image's user is root"},
		{Code: CodeImageReserved, Meaning: "warning: the image sets variables with the reserved prefix `PINNACE_`"},
	}
}

// Image is what an image says for one architecture.
type Image struct {
	Architecture string
	Refused      error // why the config cannot be used; nothing else is set then

	Entrypoint, Cmd, Env         []string
	WorkingDir, User, StopSignal string

	ExposedPorts, Volumes, Labels []string // keys only
	Healthcheck, Shell, OnBuild   bool

	Files Files // nil when they are not known
}

// Files is the file system of an image. Symbolic links are followed and lead nowhere else.
type Files interface {
	// Stat gives an error that is fs.ErrNotExist when there is nothing.
	Stat(path string) (FileInfo, error)
	// Open reads a regular file.
	Open(path string) (*io.SectionReader, error)
}

// FileInfo is what an image says of a file.
type FileInfo struct {
	Mode     fs.FileMode
	UID, GID uint32
}

// CheckImage says what does not fit between a manifest and an image, and what of the image has no effect,
// without running anything: first what is about the image alone, then in the order of the manifest. What is the same for every architecture is said once.
func CheckImage(m *manifest.Manifest, images []Image) manifest.Problems {
	var all manifest.Problems
	for _, arch := range m.Arch {
		if !slices.ContainsFunc(images, func(i Image) bool { return i.Architecture == arch }) {
			all = append(all, manifest.Problem{
				Code: CodeNoArchitecture, Severity: manifest.SeverityError, Key: "arch",
				Message: fmt.Sprintf("the image has nothing for %s", arch),
				Why:     "the image has " + architectures(images),
				Fix:     "build the image for " + arch + ", or take it out of arch",
			})
		}
	}
	type found struct {
		problem manifest.Problem
		arch    []string
	}
	var perArch []found
	checked := 0
	for _, image := range images {
		if m.Arch != nil && !slices.Contains(m.Arch, image.Architecture) {
			continue
		}
		checked++
		for _, p := range checkOne(m, image) {
			i := slices.IndexFunc(perArch, func(f found) bool { return f.problem == p })
			if i < 0 {
				perArch, i = append(perArch, found{problem: p}), len(perArch)
			}
			perArch[i].arch = append(perArch[i].arch, image.Architecture)
		}
	}
	for _, f := range perArch {
		if len(f.arch) < checked {
			f.problem.Message = "for " + strings.Join(f.arch, ", ") + ": " + f.problem.Message
		}
		all = append(all, f.problem)
	}
	for i := range all {
		if all[i].Severity == manifest.SeverityError { // warnings are about the image
			m.Locate(&all[i])
		}
	}
	inOrder(all)
	return all
}

// inOrder puts problems that have places into the order of the text; those without come first.
func inOrder(problems manifest.Problems) {
	slices.SortStableFunc(problems, func(a, b manifest.Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Code, b.Code))
	})
}

func architectures(images []Image) string {
	var names []string
	for _, i := range images {
		names = append(names, i.Architecture)
	}
	if names == nil {
		return "nothing that can run"
	}
	return strings.Join(names, ", ")
}

// fit is the check of one architecture.
type fit struct {
	m        *manifest.Manifest
	image    Image
	problems manifest.Problems
	user     account
}

func checkOne(m *manifest.Manifest, image Image) manifest.Problems {
	f := &fit{m: m, image: image}
	if image.Refused != nil {
		f.error(CodeBadConfig, "", "the image's config cannot be used: "+image.Refused.Error(), "", "build the image again with a current tool")
		return f.problems
	}
	f.account()
	f.commands()
	f.workdir()
	f.signal()
	f.ignored()
	return f.problems
}

func (f *fit) error(code, key, message, why, fix string) {
	f.problems = append(f.problems, manifest.Problem{Code: code, Severity: manifest.SeverityError, Key: key, Message: message, Why: why, Fix: fix})
}

func (f *fit) warn(code, key, message, why, fix string) {
	f.problems = append(f.problems, manifest.Problem{Code: code, Severity: manifest.SeverityWarning, Key: key, Message: message, Why: why, Fix: fix})
}

// commands checks everything that is run in the image.
func (f *fit) commands() {
	argv, key := f.argv()
	if len(argv) == 0 {
		f.error(CodeNothingToRun, key, "neither the image nor the manifest says what to run",
			"the image has no Entrypoint and no Cmd", "set entrypoint to the program in the image")
	} else {
		f.command(key, argv[0])
	}
	for _, c := range []struct {
		key   string
		probe *manifest.Probe
	}{{"health.ready.command", f.m.Health.Ready}, {"health.live.command", f.m.Health.Live}} {
		if c.probe != nil && len(c.probe.Command) > 0 {
			f.command(c.key, c.probe.Command[0])
		}
	}
	if b := f.m.Rollout.Before; b != nil && len(b.Command) > 0 {
		f.command("rollout.before.command", b.Command[0])
	}
}

// argv is what the main process will be, and the key that a person would change for another.
func (f *fit) argv() (argv []string, key string) {
	entrypoint, command := f.image.Entrypoint, f.image.Cmd
	key = "entrypoint"
	if f.m.Entrypoint != nil {
		entrypoint, command = f.m.Entrypoint, nil
	}
	if f.m.Command != nil {
		command = f.m.Command
		if len(entrypoint) == 0 && len(command) > 0 {
			key = "command"
		}
	}
	return slices.Concat(entrypoint, command), key
}

// signal checks the image's StopSignal, unless the manifest has its own.
func (f *fit) signal() {
	if s := f.image.StopSignal; f.m.Stop.Signal == "" && !isSignal(s) {
		f.error(CodeBadSignal, "stop.signal", "the image's StopSignal "+shown(s)+" is no signal", "it is what asks the process to end",
			`set stop.signal, such as "SIGTERM"`)
	}
}

// isSignal knows the spellings that images use: SIGTERM, TERM, 15, SIGRTMIN+3.
func isSignal(s string) bool {
	if s == "" {
		return true
	}
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for _, base := range []struct {
		name  string
		value int
	}{{"RTMIN", 34}, {"RTMAX", 64}} {
		if rest, ok := strings.CutPrefix(name, base.name); ok {
			offset, err := strconv.Atoi(rest)
			return rest == "" || err == nil && base.value+offset >= 34 && base.value+offset <= 64
		}
	}
	return slices.Contains(strings.Fields(signalNames), name)
}

const signalNames = `HUP INT QUIT ILL TRAP ABRT IOT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CLD CONT STOP TSTP TTIN TTOU
URG XCPU XFSZ VTALRM PROF WINCH IO POLL PWR SYS`

// ignored lists what the image asks for and does not get.
func (f *fit) ignored() {
	for _, port := range f.image.ExposedPorts {
		f.warn(CodeExpose, "ports", "EXPOSE "+plain(port)+" has no effect", "the manifest says which ports there are"+f.declared(port), "")
	}
	for _, volume := range f.image.Volumes {
		f.warn(CodeVolume, "volumes", "VOLUME "+plain(volume)+" has no effect",
			"what is written there is gone when the instance is replaced", "declare a volume in [volumes] if it must be kept")
	}
	if f.image.Healthcheck {
		f.warn(CodeHealthcheck, "health", "HEALTHCHECK has no effect", "the manifest says how health is checked", "")
	}
	if n := len(f.image.Labels); n > 0 {
		f.warn(CodeLabels, "", "LABEL has no effect: "+plain(strings.Join(f.image.Labels[:min(n, 8)], ", "))+more(n-8), "", "")
	}
	if f.image.Shell || f.image.OnBuild {
		f.warn(CodeBuildOnly, "", "SHELL and ONBUILD have no effect", "they are for builds", "")
	}
	for _, e := range f.image.Env {
		name, _, _ := strings.Cut(e, "=")
		if _, set := f.m.Env[name]; !set && strings.HasPrefix(name, "PINNACE_") {
			f.warn(CodeImageReserved, "env", "the image sets "+plain(name), "the prefix PINNACE_ is reserved for the platform", "name it otherwise when you build the image")
		}
	}
}

// declared says whether the manifest has the port that an image exposes.
func (f *fit) declared(exposed string) string {
	number, protocol, _ := strings.Cut(exposed, "/")
	if protocol == "" {
		protocol = manifest.ProtocolTCP
	}
	for name, p := range f.m.Ports {
		if strconv.Itoa(p.Port) == number && p.Protocol == protocol {
			return "; this one is ports." + name
		}
	}
	return "; this one is not among them"
}

func more(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

// shown quotes text from an image, and bounds it.
func shown(s string) string { return `"` + plain(s) + `"` }

// plain makes text from an image fit for a terminal, and bounds it.
func plain(s string) string {
	const most = 200
	end := ""
	if len(s) > most {
		s, end = s[:most], "…"
	}
	quoted := strconv.Quote(s)
	return quoted[1:len(quoted)-1] + end
}
