package guest

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Type says what a frame holds. Types from the guest are below 0x40, types from the host are not.
type Type byte

// The types. Numbers are never used again for something else.
const (
	TypeHello      Type = 0x01 // guest, control: first frame of a session
	TypeStarted    Type = 0x02 // guest, control: the workload's process runs
	TypeFailed     Type = 0x03 // guest, control: it never will
	TypeExit       Type = 0x04 // guest, control: the workload's process has ended
	TypeHeartbeat  Type = 0x05 // guest, control: every HeartbeatInterval
	TypeExecResult Type = 0x06 // guest, control: answer to Exec
	TypeStats      Type = 0x0a // guest, control: answer to AskStats
	TypeClock      Type = 0x0b // guest, control: answer to Time
	TypeBundled    Type = 0x0d // guest, control: answer to a Bundle that came after the Config
	TypeFrozen     Type = 0x0e // guest, control: answer to a Freeze
	TypeLine       Type = 0x21 // guest, logs
	TypeResumed    Type = 0x22 // guest, logs: answer to Resume

	TypeConfig   Type = 0x41 // host, control
	TypeStop     Type = 0x42 // host, control
	TypeExec     Type = 0x43 // host, control
	TypeAckExit  Type = 0x44 // host, control: the report is safe, shut down
	TypeAttach   Type = 0x45 // host, control: first frame of a session that goes on with another
	TypeTime     Type = 0x4a // host, control: what the time is
	TypeAskStats Type = 0x4b // host, control
	TypeBundle   Type = 0x4d // host, control: one version of a bundle of secrets
	TypeFreeze   Type = 0x4e // host, control: let nothing be written to a volume, or let it again
	TypeAck      Type = 0x61 // host, logs
	TypeResume   Type = 0x62 // host, logs: first frame of a session that goes on with another
)

// ErrUnknownType is wrapped by Decode for a type that this version does not know. Sessions skip such frames.
var ErrUnknownType = errors.New("unknown frame type")

// Message is one of the structs of this package that travel in a frame.
type Message interface{ frameType() Type }

// Hello is the guest's first word.
type Hello struct {
	Version       int    `json:"version"`
	Nonce         string `json:"nonce"` // 32 hex digits drawn at boot: names this boot of this VM
	Init          string `json:"init"`  // version of pinnace-init
	Kernel        string `json:"kernel"`
	MemTotalBytes int64  `json:"mem_total_bytes"`
	Marks         []Mark `json:"marks"`
	Token         string `json:"token,omitempty"`      // that of the Attach which it answers; empty in the first Hello
	Configured    bool   `json:"configured,omitempty"` // a Config has come: this boot takes no other
	// Can names what this init can do beyond the first init of its version.
	Can []string `json:"can,omitempty"`
}

// Mark is a moment of the boot.
type Mark struct {
	Name string `json:"name"`
	MS   int64  `json:"ms"` // milliseconds since the guest's kernel started
}

// Started says that the workload's process runs.
type Started struct {
	PID       int    `json:"pid"`
	StartedAt int64  `json:"started_unix_ns"`
	Marks     []Mark `json:"marks"`
}

// Failed says that the workload will never run in this VM. The guest waits for AckExit and then shuts down.
type Failed struct {
	Stage string `json:"stage"` // the step of PID 1 that failed, "exec" for the start of the process itself
	Error string `json:"error"`
	Errno string `json:"errno,omitempty"` // the kernel's name for it, such as "ENOENT"; empty when it was no system call
	Code  int    `json:"code"`            // what a shell would report: 127 not found, 126 can't be executed, else 125
	Marks []Mark `json:"marks"`
}

// Exit is the report of the workload's end. It is sent again every second until AckExit arrives.
type Exit struct {
	Code   int    `json:"code"`             // exit status; 128+n after signal n
	Signal string `json:"signal,omitempty"` // such as "SIGKILL", when a signal ended it
	OOM    bool   `json:"oom,omitempty"`    // the kernel's OOM killer did it
	// Victim is the process that the OOM killer chose, when OOM is set and the guest knows.
	Victim    *Victim `json:"oom_victim,omitempty"`
	Stopped   bool    `json:"stopped,omitempty"`
	Killed    bool    `json:"killed,omitempty"` // it outlived its grace and PID 1 killed it
	Error     string  `json:"error,omitempty"`  // PID 1 itself has failed and took the workload with it: why
	StartedAt int64   `json:"started_unix_ns"`
	ExitedAt  int64   `json:"exited_unix_ns"`
	LastLine  uint64  `json:"last_line"` // seq of the last log line there will be; 0 when there was none
}

// Victim is a process that the OOM killer chose. The others of the workload ended with it.
type Victim struct {
	PID  int    `json:"pid"`
	Name string `json:"name"` // the kernel's name of it, of at most 15 bytes
}

// Heartbeat says that PID 1 is alive.
type Heartbeat struct {
	MS int64 `json:"ms"` // milliseconds since the guest's kernel started
}

// ExecResult answers an Exec.
type ExecResult struct {
	ID        uint64 `json:"id"`
	Code      int    `json:"code"`                // exit status, 128+n after signal n, 126 or 127 when it couldn't be started
	Output    []byte `json:"output,omitempty"`    // first bytes of stdout and stderr together, at most MaxExecOutput
	Truncated bool   `json:"truncated,omitempty"` // there was more output
	TimedOut  bool   `json:"timed_out,omitempty"` // it was killed because its time was up
	Error     string `json:"error,omitempty"`     // why it could not be run at all
}

// Line is a piece of output of the workload.
type Line struct {
	Seq     uint64 `json:"seq"`               // 1, 2, 3 … without a gap
	Time    int64  `json:"time_unix_ns"`      // when PID 1 read it
	Stream  string `json:"stream"`            // StreamStdout or StreamStderr
	Data    []byte `json:"data,omitempty"`    // without its newline, at most MaxLine
	Partial bool   `json:"partial,omitempty"` // no newline here: the next Line of this stream continues it
	Dropped uint64 `json:"dropped,omitempty"` // > 0: no output but a marker that so many lines were lost here
}

// Resumed answers a Resume: the lines that follow begin with number Next.
type Resumed struct {
	Token string `json:"token"`
	Next  uint64 `json:"next"`
}

// Config tells the guest what to run and on what. See config.go for its parts.
type Config struct {
	Nonce         string      `json:"nonce"`       // that of the Hello it answers; Host.Configure fills it in
	Now           int64       `json:"now_unix_ns"` // the host's clock; Host.Configure fills it in
	Entropy       []byte      `json:"entropy"`     // seed of the guest's random numbers; Host.Configure fills it in
	Hostname      string      `json:"hostname"`
	Disks         []Disk      `json:"disks"`
	LayerSlots    []LayerSlot `json:"layer_slots,omitempty"` // in the order of the EROFS device table
	Network       *Network    `json:"network,omitempty"`     // nil: loopback only
	Process       Process     `json:"process"`
	Volumes       []Volume    `json:"volumes,omitempty"`
	Secrets       []Secret    `json:"secrets,omitempty"`              // their values come in Bundles, before the Config
	MemoryReserve int64       `json:"memory_reserve_bytes,omitempty"` // kept from the workload for kernel and init; 0: the guest's default
	Limits        Limits      `json:"limits"`
}

// Stop asks for the end of the workload: Signal, then after Timeout SIGKILL for all of it.
type Stop struct {
	Signal    string `json:"signal,omitempty"` // "" means the configured stop signal
	TimeoutMS int64  `json:"timeout_ms"`
}

// Exec asks for a command to be run beside the workload, as its user, with its environment and directory.
type Exec struct {
	ID        uint64   `json:"id"`
	Argv      []string `json:"argv"`
	TimeoutMS int64    `json:"timeout_ms"`
}

// AckExit says that the host has the report of the end (Exit or Failed) and the VM may shut down.
type AckExit struct{}

// Bundle is one version of a bundle of secrets. Before the Config it is what the workload is started with; afterwards it
// takes the place of the version that is there, all of it at one moment, and Signal is sent to the workload's main
// process. The version that is there already changes nothing.
type Bundle struct {
	Name    string       `json:"bundle"`
	Version uint64       `json:"version"`
	Values  SecretValues `json:"values"`
	Signal  string       `json:"signal,omitempty"` // "": none
}

// SecretValues are secrets by their keys. What formats them, for a message or a log, gets nothing but their number.
type SecretValues map[string][]byte

// Format implements fmt.Formatter.
func (v SecretValues) Format(to fmt.State, _ rune) { fmt.Fprintf(to, "%d secrets", len(v)) }

// Bundled answers a Bundle that came after the Config, when it is in place and its signal was sent, or could not be.
type Bundled struct {
	Name    string `json:"bundle"`
	Version uint64 `json:"version"`
	Error   string `json:"error,omitempty"` // why the version before it is still in place
}

// Freeze has everything written out that belongs to a volume, and whoever writes to it wait: for ForMS milliseconds, or
// until a Freeze with none.
type Freeze struct {
	ID     uint64 `json:"id"`
	Volume string `json:"volume"` // its name in the Config
	ForMS  int64  `json:"for_ms,omitempty"`
}

// Frozen answers a Freeze.
type Frozen struct {
	ID     uint64 `json:"id"`
	Volume string `json:"volume"`
	Whole  bool   `json:"whole,omitempty"` // of one that ends a freeze: it had lasted until then
	Error  string `json:"error,omitempty"`
}

// Ack says that the host keeps all lines up to Seq; the guest forgets them.
type Ack struct {
	Seq uint64 `json:"seq"`
}

// Attach begins a session with a guest that another session has met, or was about to meet. The guest answers with a
// restart mark, a Hello with the token, and what it has to say again: Started or Failed, and Exit.
type Attach struct {
	Version int    `json:"version"`
	Token   string `json:"token"` // drawn for this session, so that an answer to an earlier Attach is known as such
}

// Resume says that the host has all lines up to After. The guest answers with a restart mark, Resumed, and the lines
// from there on.
type Resume struct {
	Token string `json:"token"`
	After uint64 `json:"after"`
}

// Streams of a Line.
const (
	StreamStdout = "stdout"
	StreamStderr = "stderr"
)

// Bounds of fields from the guest. What exceeds a list's or a byte field's bound closes the session; texts for people
// are cut.
const (
	MaxLine       = 16 << 10 // bytes of a Line's Data
	MaxExecOutput = 4 << 10  // bytes of an ExecResult's Output
	maxMarks      = 64
	maxName       = 128
	maxText       = 4 << 10
)

func (Stats) frameType() Type      { return TypeStats }
func (Clock) frameType() Type      { return TypeClock }
func (Time) frameType() Type       { return TypeTime }
func (AskStats) frameType() Type   { return TypeAskStats }
func (Hello) frameType() Type      { return TypeHello }
func (Started) frameType() Type    { return TypeStarted }
func (Failed) frameType() Type     { return TypeFailed }
func (Exit) frameType() Type       { return TypeExit }
func (Heartbeat) frameType() Type  { return TypeHeartbeat }
func (ExecResult) frameType() Type { return TypeExecResult }
func (Bundled) frameType() Type    { return TypeBundled }
func (Frozen) frameType() Type     { return TypeFrozen }
func (Freeze) frameType() Type     { return TypeFreeze }
func (Bundle) frameType() Type     { return TypeBundle }
func (Line) frameType() Type       { return TypeLine }
func (Resumed) frameType() Type    { return TypeResumed }
func (Config) frameType() Type     { return TypeConfig }
func (Stop) frameType() Type       { return TypeStop }
func (Exec) frameType() Type       { return TypeExec }
func (AckExit) frameType() Type    { return TypeAckExit }
func (Attach) frameType() Type     { return TypeAttach }
func (Ack) frameType() Type        { return TypeAck }
func (Resume) frameType() Type     { return TypeResume }

// Encode appends the frame of m to dst. It fails only when the frame would be longer than its reader allows.
func Encode(dst []byte, m Message) ([]byte, error) {
	if line, ok := m.(Line); ok && line.plain() {
		return appendLine(dst, line), nil
	}
	body, err := json.Marshal(m)
	if err != nil {
		return dst, fmt.Errorf("encode %T: %w", m, err)
	}
	limit := MaxGuestFrame
	if m.frameType() >= 0x40 {
		limit = MaxHostFrame
	}
	if len(body)+1 > limit {
		return dst, fmt.Errorf("encode %T: %d bytes are too many for one frame (at most %d)", m, len(body)+1, limit)
	}
	return appendFrame(dst, m.frameType(), body), nil
}

// Decode reads the body of a frame and checks every bound of its type. The error wraps ErrUnknownType when there is no
// such type, and ErrFrame when the body is not what its type says.
func Decode(t Type, body []byte) (Message, error) {
	switch t {
	case TypeHello:
		return decode[Hello](body)
	case TypeStarted:
		return decode[Started](body)
	case TypeFailed:
		return decode[Failed](body)
	case TypeExit:
		return decode[Exit](body)
	case TypeHeartbeat:
		return decode[Heartbeat](body)
	case TypeExecResult:
		return decode[ExecResult](body)
	case TypeBundled:
		return decode[Bundled](body)
	case TypeFrozen:
		return decode[Frozen](body)
	case TypeFreeze:
		return decode[Freeze](body)
	case TypeBundle:
		return decode[Bundle](body)
	case TypeStats:
		return decode[Stats](body)
	case TypeClock:
		return decode[Clock](body)
	case TypeTime:
		return decode[Time](body)
	case TypeAskStats:
		return decode[AskStats](body)
	case TypeLine:
		return decode[Line](body)
	case TypeResumed:
		return decode[Resumed](body)
	case TypeConfig:
		return decode[Config](body)
	case TypeStop:
		return decode[Stop](body)
	case TypeExec:
		return decode[Exec](body)
	case TypeAckExit:
		return decode[AckExit](body)
	case TypeAttach:
		return decode[Attach](body)
	case TypeAck:
		return decode[Ack](body)
	case TypeResume:
		return decode[Resume](body)
	default:
		return decodeCommand(t, body)
	}
}

func decode[M Message](body []byte) (Message, error) {
	var m M
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("%w: %T: %w", ErrFrame, m, err)
	}
	if c, ok := any(&m).(checker); ok {
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("%w: %T: %w", ErrFrame, m, err)
		}
	}
	return m, nil
}
