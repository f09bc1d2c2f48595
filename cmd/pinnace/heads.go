package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/server"
)

// knownHead is the last event of a server's log that this user has heard of.
type knownHead struct {
	Server string        `json:"server"`
	Log    string        `json:"log"`
	Seq    uint64        `json:"seq"`
	Hash   eventlog.Hash `json:"hash"`
}

func (k knownHead) head() eventlog.Head { return eventlog.Head{Seq: k.Seq, Hash: k.Hash} }

// headsPath is the file with what the user has heard of: facts about servers, not settings.
func (c *cli) headsPath() (string, error) {
	if dir := c.getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "pinnace", "heads.json"), nil
	}
	home := c.getenv("HOME")
	if home == "" {
		return "", errors.New("HOME is not set")
	}
	return filepath.Join(home, ".local", "state", "pinnace", "heads.json"), nil
}

// readHeads reads the file, by server. One that is not there, or no place for one, is empty.
func (c *cli) readHeads() (map[string]knownHead, string, error) {
	heads := map[string]knownHead{}
	path, err := c.headsPath()
	if err != nil {
		return heads, "", nil //nolint:nilerr // Without a home nothing can be remembered, which is no error here.
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return heads, path, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &heads)
	}
	if err != nil {
		return nil, "", fail(exitInvalid, "look at it, and delete it when it is of no use", "read %s: %w", path, err)
	}
	return heads, path, nil
}

// knownHeads gives what is known, by log.
func (c *cli) knownHeads() (map[string]knownHead, error) {
	byServer, _, err := c.readHeads()
	byLog := map[string]knownHead{}
	for _, k := range byServer {
		if k.Seq >= byLog[k.Log].Seq {
			byLog[k.Log] = k
		}
	}
	return byLog, err
}

func (c *cli) knownHead(log eventlog.LogID) (eventlog.Head, error) {
	heads, err := c.knownHeads()
	return heads[log.String()].head(), err
}

func (c *cli) forgetHead(server string) error {
	heads, path, err := c.readHeads()
	if err != nil || path == "" {
		return err
	}
	log := heads[server].Log
	for name, k := range heads {
		if name == server || k.Log == log && log != "" {
			delete(heads, name)
		}
	}
	return writeHeads(path, heads)
}

func writeHeads(path string, heads map[string]knownHead) error {
	b, err := json.MarshalIndent(heads, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), 0o600)
}

// headCheck holds a server against what the user has heard of its log, before the first call of a command that
// could act on what the server says. A server that was restored from an older copy, or has lost events in a
// failover, does not know the hash of an event that it does not have.
type headCheck struct {
	cli    *cli
	server string
	client pinnacev1connect.ControlServiceClient

	once sync.Once
	err  error
}

func (h *headCheck) check(ctx context.Context) error {
	h.once.Do(func() { h.err = h.look(ctx) })
	return h.err
}

func (h *headCheck) look(ctx context.Context) error {
	heads, path, err := h.cli.readHeads()
	if err != nil || path == "" {
		return err
	}
	seen, known := heads[h.server]
	info, err := h.client.GetServerInfo(ctx, connect.NewRequest(&pinnacev1.GetServerInfoRequest{SeenSeq: seen.Seq}))
	if err != nil {
		return err
	}
	if known {
		if err := extends(seen, info.Msg); err != nil {
			return fail(exitConflict, "do nothing with this server until it is known why. Where the log was restored on purpose: pinnace audit forget",
				"%s: %w", h.server, err)
		}
	}
	now := knownHead{Server: h.server, Log: info.Msg.ClusterId, Seq: info.Msg.HeadSeq}
	if len(info.Msg.HeadHash) != len(now.Hash) {
		return errors.New("the server's head is malformed")
	}
	copy(now.Hash[:], info.Msg.HeadHash)
	// A server that follows may be a little behind what the user has seen, and that was checked.
	if now == seen {
		return nil
	}
	heads[h.server] = now
	if err := writeHeads(path, heads); err != nil {
		h.cli.say("cannot remember the head of the server's log: %v", err)
	}
	return nil
}

// told remembers what a response says of the head: the caller's own change is in it.
func (h *headCheck) told(header string) {
	now := knownHead{Server: h.server}
	var hash string
	if n, _ := fmt.Sscanf(header, "%32s %d %64s", &now.Log, &now.Seq, &hash); n != 3 || now.Hash.UnmarshalText([]byte(hash)) != nil {
		return
	}
	heads, path, err := h.cli.readHeads()
	if was := heads[h.server]; err != nil || path == "" || was.Log != now.Log || was.Seq >= now.Seq {
		return
	}
	heads[h.server] = now
	if err := writeHeads(path, heads); err != nil {
		h.cli.say("cannot remember the head of the server's log: %v", err)
	}
}

// extends says whether the log that the server tells of still has the event that was seen.
func extends(seen knownHead, info *pinnacev1.GetServerInfoResponse) error {
	if info.ClusterId != seen.Log {
		return errors.New("the server has another event log (" + info.ClusterId + ") than before (" + seen.Log + ")")
	}
	if string(info.SeenHash) == string(seen.Hash[:]) {
		return nil
	}
	have := eventlog.Head{Seq: info.HeadSeq}
	if len(info.SeenHash) == len(have.Hash) {
		have = eventlog.Head{Seq: seen.Seq, Hash: eventlog.Hash(info.SeenHash)}
	} else if have.Seq >= seen.Seq {
		return errors.New("the server does not tell the hash of event " + seen.Hash.String())
	}
	return &eventlog.RegressionError{Seen: seen.head(), Have: have}
}

// WrapUnary implements connect.Interceptor.
func (h *headCheck) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := h.check(ctx); err != nil {
			return nil, err
		}
		res, err := next(ctx, req)
		if err == nil {
			h.told(res.Header().Get(server.HeadHeader))
		}
		return res, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (h *headCheck) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		if err := h.check(ctx); err != nil {
			return &refusedConn{StreamingClientConn: conn, err: err}
		}
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (h *headCheck) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// refusedConn is a stream that is not begun.
type refusedConn struct {
	connect.StreamingClientConn
	err error
}

func (r *refusedConn) Send(any) error    { return r.err }
func (r *refusedConn) Receive(any) error { return r.err }

// Closing what is not begun would begin it, or wait for it.
func (r *refusedConn) CloseRequest() error  { return nil }
func (r *refusedConn) CloseResponse() error { return nil }
