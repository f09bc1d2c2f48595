package image

// Config is what an image says about the process to run.
type Config struct {
	Architecture string
	OS           string

	Entrypoint []string
	Cmd        []string
	Env        []string // "KEY=value"
	WorkingDir string
	User       string
	StopSignal string

	Ignored Ignored
}

// Ignored is what an image asks for and Pinnace does not do: policy comes from the manifest of the
// release, never from the image. It is kept so that people can be told.
type Ignored struct {
	ExposedPorts []string // sorted
	Volumes      []string // sorted
	Labels       []string // keys, sorted
	Healthcheck  bool
	Shell        bool
	OnBuild      bool
}
