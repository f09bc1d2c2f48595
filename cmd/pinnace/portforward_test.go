package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// echoServer gives back what it gets through ports, and says that it ends when the caller does.
type echoServer struct {
	pinnacev1connect.UnimplementedControlServiceHandler
}

func (echoServer) ForwardPort(_ context.Context, stream *connect.BidiStream[pinnacev1.ForwardPortRequest, pinnacev1.ForwardPortResponse]) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		out := &pinnacev1.ForwardPortResponse{Data: m.Data, Eof: m.Eof}
		if m.Start != nil {
			out.Connected = &pinnacev1.ForwardConnected{Instance: m.Start.Target}
		}
		if err := stream.Send(out); err != nil || m.Eof {
			return err
		}
	}
}

// TestPortForward: both directions end on their own, and Ctrl-C ends connections that are open.
func TestPortForward(t *testing.T) {
	_, handler := pinnacev1connect.NewControlServiceHandler(echoServer{})
	api := httptest.NewUnstartedServer(handler)
	api.Config.Protocols = new(http.Protocols)
	api.Config.Protocols.SetHTTP1(true)
	api.Config.Protocols.SetUnencryptedHTTP2(true)
	api.Start()
	defer api.Close()
	var out, said bytes.Buffer
	env := map[string]string{"PINNACE_SERVER": api.URL, "PINNACE_TOKEN": "t"}
	c := &cli{stdin: bytes.NewReader(nil), stdout: &out, stderr: &said, getenv: func(name string) string { return env[name] }}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- c.forward(ctx, l, &pinnacev1.ForwardStart{Environment: "dev", Target: "db", Port: "web"})
	}()
	dial := func() *net.TCPConn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn.(*net.TCPConn)
	}
	half := dial()
	if _, err := half.Write([]byte("all of it")); err != nil {
		t.Fatal(err)
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(half); err != nil || string(got) != "all of it" {
		t.Errorf("got %q, %v", got, err)
	}
	open := dial()
	if _, err := open.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(open, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	interrupt()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on, although it was interrupted")
	}
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
}
