package network

import (
	"context"
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// TestNextManagerDisturbsNothing: while one Manager after the other takes over and makes everything again that there is,
// no packet between what is connected is lost.
func TestNextManagerDisturbsNothing(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	dir := t.TempDir()
	m := w.manager(t, dir, "tstn")
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	one, two := newGuest(t, m, "red", "one"), newGuest(t, m, "red", "two")
	stops := map[string]func() (sent, lost int){
		"host to guest":    echo(t, m.envs["red"].ns.file.Name(), one.namespace, one.IPv4.Addr().String()),
		"guest to guest":   echo(t, one.file.Name(), two.namespace, two.IPv4.Addr().String()),
		"guest to outside": echo(t, two.file.Name(), w.outside, "192.0.2.1"),
	}
	for range 3 {
		before := must[[]Attachment](t)(m.Attachments("red"))
		check(t, m.Close())
		m = w.manager(t, dir, "tstn")
		must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
		for _, was := range before {
			at := must[*Attachment](t)(m.Attach(ctx, "red", was.Instance, was.UID))
			if at.IPv4 != was.IPv4 || at.Tap != was.Tap || at.MAC.String() != was.MAC.String() {
				t.Errorf("%s was %+v and is %+v", was.Instance, was, at)
			}
		}
	}
	for path, stop := range stops {
		if sent, lost := stop(); lost > 0 || sent < 10 {
			t.Errorf("%s: %d of %d packets were lost", path, lost, sent)
		} else {
			t.Logf("%s: %d packets, none lost", path, sent)
		}
	}
}

// echo sends numbered packets from the namespace at path to an address in another, where they are sent back, until the
// function that it returns is called.
func echo(t *testing.T, path string, in *namespace, address string) func() (sent, lost int) {
	t.Helper()
	from := must[*namespace](t)(openNamespace(path))
	t.Cleanup(func() { _ = from.close() })
	var server net.PacketConn
	check(t, in.do(func() (err error) { server, err = net.ListenPacket("udp", address+":7"); return err }))
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		b := make([]byte, 8)
		for {
			n, peer, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(b[:n], peer)
		}
	}()
	var client net.Conn
	check(t, from.do(func() (err error) { client, err = net.Dial("udp", address+":7"); return err }))
	t.Cleanup(func() { _ = client.Close() })

	stop, stopped := make(chan struct{}), make(chan struct{})
	sent, lost := 0, 0
	go func() {
		defer close(stopped)
		b := make([]byte, 8)
		for ; ; sent++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			binary.BigEndian.PutUint64(b, uint64(sent))
			_, err := client.Write(b)
			if err == nil {
				_ = client.SetReadDeadline(time.Now().Add(patient))
				_, err = client.Read(b)
			}
			if err != nil || binary.BigEndian.Uint64(b) != uint64(sent) {
				lost++
			}
		}
	}()
	return func() (int, int) { close(stop); <-stopped; return sent, lost }
}
