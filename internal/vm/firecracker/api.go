package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxAnswer bounds what is read of an answer: faults are a sentence or two.
const maxAnswer = 16 << 10

// A Fault is what Firecracker answered to a request that it refused.
type Fault struct {
	Path    string
	Status  int
	Message string
}

func (f *Fault) Error() string {
	return fmt.Sprintf("firecracker refused PUT %s: %s (status %d)", f.Path, f.Message, f.Status)
}

// api speaks to one monitor over its socket.
type api struct {
	client http.Client
}

func newAPI(dial func(ctx context.Context) (net.Conn, error)) *api {
	return &api{client: http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxConnsPerHost:    1,
		DisableCompression: true,
	}}}
}

func (a *api) close() { a.client.CloseIdleConnections() }

// put sends one request. The error is a *Fault when the monitor refused it.
func (a *api) put(ctx context.Context, r request) error {
	body, err := json.Marshal(r.body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://localhost"+r.path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	answer, err := a.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("PUT %s to firecracker: %w", r.path, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read firecracker's answer to PUT %s: %w", r.path, err)
	}
	if answer.StatusCode == http.StatusNoContent {
		return nil
	}
	return &Fault{Path: r.path, Status: answer.StatusCode, Message: faultMessage(text)}
}

// faultMessage takes the message out of an answer, which might be none of Firecracker's.
func faultMessage(text []byte) string {
	var fault struct {
		Message string `json:"fault_message"`
	}
	if err := json.Unmarshal(text, &fault); err == nil && fault.Message != "" {
		return fault.Message
	}
	return fmt.Sprintf("it answered %.200q", text)
}
