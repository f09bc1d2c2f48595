package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the store and the confined process that does its parsing say to each other: one message each way for
// every piece of work, as JSON, with the files that it is about. The store reads answers as it would read them
// from a stranger.
type request struct {
	ID     int64  `json:"id"`
	Task   task   `json:"task"`
	Limits Limits `json:"limits"`

	DiffID string `json:"diff_id,omitempty"` // taskLayer, taskIndex

	UUID   [16]byte       `json:"uuid"` // taskMerge
	Layers []requestLayer `json:"layers,omitempty"`
}

type requestLayer struct {
	DiffID string `json:"diff_id"`
	Size   int64  `json:"size"`
}

// A task is what there is to do. Files come in the order that each says.
type task string

const (
	// From a blob in a ring (memory, socket): write the layer's tar and its index.
	taskLayer task = "layer"
	// From a layer's tar in a ring (memory, socket): write its index.
	taskIndex task = "index"
	// Write the metadata to the first file, from the indexes, which are the others.
	taskMerge task = "merge"
)

type reply struct {
	ID    int64  `json:"id"`
	Fault *fault `json:"fault,omitempty"`

	Size     int64           `json:"size,omitempty"` // of the layer's tar
	Metadata *metadataReport `json:"metadata,omitempty"`
}

// A metadataReport is what a record says about metadata.
type metadataReport struct {
	SHA256 string `json:"sha256"`
	CRC32C uint32 `json:"crc32c"`
	Size   int64  `json:"size"`
}

const (
	maxRequest = 64 << 10
	maxReply   = 16 << 10
	maxFiles   = maxLayers + 4 // of one request
)

// A fault is an error as it goes over the connection.
type fault struct {
	Kind  faultKind `json:"kind"`
	Text  string    `json:"text"`
	Errno int       `json:"errno,omitempty"`
}

type faultKind string

const (
	faultRefused faultKind = "refused" // ErrRefused
	faultStopped faultKind = "stopped" // errStopped
	faultSystem  faultKind = "system"  // a file could not be read or written
	faultProgram faultKind = "program" // a fault of ours
)

func newFault(err error) *fault {
	if err == nil {
		return nil
	}
	const most = 4 << 10
	f := &fault{Kind: faultSystem, Text: err.Error()}
	if len(f.Text) > most {
		f.Text = strings.ToValidUTF8(f.Text[:most], "") + "..."
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		f.Errno = int(errno)
	}
	switch {
	case errors.As(err, new(*panicError)):
		f.Kind = faultProgram
	case errors.Is(err, ErrRefused):
		f.Kind = faultRefused
	case errors.Is(err, errStopped):
		f.Kind = faultStopped
	}
	return f
}

// err gives the error that was.
func (f *fault) err() error {
	if f == nil {
		return nil
	}
	e := &remoteError{text: clean(f.Text)}
	switch f.Kind {
	case faultRefused:
		e.causes = append(e.causes, ErrRefused)
	case faultStopped:
		e.causes = append(e.causes, errStopped)
	case faultSystem: // the errno says it
	case faultProgram:
		e.causes = append(e.causes, errConfined)
	}
	if f.Errno > 0 {
		e.causes = append(e.causes, syscall.Errno(f.Errno))
	}
	return e
}

type remoteError struct {
	text   string
	causes []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.causes }

// clean makes text safe to print that a process wrote which may not be ours any more.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// send sends a message with files.
func send(conn *net.UnixConn, message any, files ...*os.File) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		_, err = conn.Write(b) // the one that is confined may not send otherwise
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, _, err = conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

// receiveRequest receives a request with its files.
func receiveRequest(conn *net.UnixConn, buffer, oob []byte) (*request, []*os.File, error) {
	n, oobn, flags, _, err := conn.ReadMsgUnix(buffer, oob)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, net.ErrClosed
	}
	files, err := receivedFiles(oob[:oobn])
	if err != nil {
		return nil, files, err
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, files, fmt.Errorf("request of more than %d bytes or %d files", len(buffer), maxFiles)
	}
	r := new(request)
	return r, files, json.Unmarshal(buffer[:n], r)
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "file"))
		}
	}
	return files, nil
}
