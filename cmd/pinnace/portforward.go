package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// forwardBuffer is the most that one message of a connection carries, in bytes.
const forwardBuffer = 32 << 10

func (c *cli) newPortForward() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "port-forward APP|INSTANCE [LOCAL:]PORT",
		Short: "Lead a port of this machine to one of an instance",
		Long: `Port-forward listens on a port of this machine, and leads each connection through the server and the host's
agent to a TCP port of an instance, whether that is public, internal or neither. PORT is a name of the
manifest or a number; LOCAL is the same number, or a free one for a name. It goes on until Ctrl-C. For
an app it is the first of its instances that runs, chosen anew for each connection.`,
		Example: "  pinnace port-forward db 15432:5432\n  pinnace port-forward api/0 admin",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			local, port, ok := strings.Cut(args[1], ":")
			if !ok {
				local, port = "0", args[1]
				if _, err := strconv.ParseUint(port, 10, 16); err == nil {
					local = port
				}
			}
			if n, err := strconv.ParseUint(local, 10, 16); err != nil || port == "" {
				return fail(exitInvalid, "pinnace port-forward "+args[0]+" 15432:5432", "%q is not LOCAL:PORT", args[1])
			} else if n > 0 && n < 1024 {
				c.say("port %d is one that most systems let only root listen on", n)
			}
			_, env, err := c.clientIn()
			if err != nil {
				return err
			}
			var config net.ListenConfig
			l, err := config.Listen(cmd.Context(), "tcp", net.JoinHostPort(address, local))
			if err != nil {
				return fail(exitConflict, "choose another one: pinnace port-forward "+args[0]+" 15432:"+port, "%w", err)
			}
			if c.json {
				if err := c.printJSON(map[string]any{"address": l.Addr().String(), "target": args[0], "port": port}); err != nil {
					return err
				}
			} else {
				c.print("%s leads to port %s of %s", l.Addr(), port, args[0])
			}
			return c.forward(cmd.Context(), l, &pinnacev1.ForwardStart{Environment: env, Target: args[0], Port: port})
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "the address of this machine to listen on")
	return cmd
}

// forward leads connections until ctx ends.
func (c *cli) forward(ctx context.Context, l net.Listener, start *pinnacev1.ForwardStart) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept tells
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			cancel()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept connections: %w", err)
		}
		open.Go(func() {
			defer func() { _ = conn.Close() }() // it has been closed already, or nobody needs it
			if err := c.forwardOne(ctx, conn, start); err != nil && ctx.Err() == nil {
				_, message, _ := describe(err)
				c.say("connection from %s: %s", conn.RemoteAddr(), message)
			}
		})
	}
}

// forwardOne leads one connection. It has a connection to the server of its own, so that none holds up another one.
func (c *cli) forwardOne(ctx context.Context, conn net.Conn, start *pinnacev1.ForwardStart) error {
	over := streamHTTPClient()
	defer over.CloseIdleConnections()
	client, _, err := c.clientOver(over)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := client.ForwardPort(ctx)
	if err := stream.Send(&pinnacev1.ForwardPortRequest{Start: start}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if first, err := stream.Receive(); err != nil {
		return err
	} else if first.Connected == nil {
		return errors.New("the server did not connect")
	}
	stop := context.AfterFunc(ctx, func() {
		_ = conn.Close()          // whoever reads or writes it is told
		_ = stream.CloseRequest() // before that, nobody who receives would hear of the end of ctx
	})
	defer stop()
	var up sync.WaitGroup
	defer up.Wait()
	defer func() { _ = conn.Close() }() // so that nothing more is read from it
	up.Go(func() {
		buf := make([]byte, forwardBuffer)
		for {
			n, err := conn.Read(buf)
			if n > 0 && stream.Send(&pinnacev1.ForwardPortRequest{Data: buf[:n]}) != nil {
				return // what is received says why
			}
			if errors.Is(err, io.EOF) {
				_ = stream.Send(&pinnacev1.ForwardPortRequest{Eof: true})
				return
			}
			if err != nil {
				cancel()
				return
			}
		}
	})
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write(m.Data); err != nil {
			return nil //nolint:nilerr // The one who connected has gone, and needs not be told.
		}
		if half, ok := conn.(*net.TCPConn); ok && m.Eof {
			_ = half.CloseWrite() // it may have gone
		}
	}
}
