package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestKillKeepsMachines kills pinnace dev while its app serves: the app serves on, and after the next start it is the
// same machine, in its first attempt, with the same connection; then Ctrl-C stops it.
func TestKillKeepsMachines(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	l.must("deploy", "-f", l.manifest("app", web("app", port)), "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	c := l.connect(t, port)
	boot := c.get("/boot")
	for round := range 2 {
		l.kill()
		if got := c.get("/boot"); got != boot {
			t.Errorf("round %d: while nothing of dev runs the app is %q, want %q", round, got, boot)
		}
		l.start()
		l.eventually(30*time.Second, "the instance is ready", func() error {
			list := l.instances()
			if len(list) != 1 || list[0].State != "ready" || list[0].Attempt != 1 {
				return fmt.Errorf("%+v", list)
			}
			return nil
		})
		if got := c.get("/boot"); got != boot {
			t.Errorf("round %d: after the next start the app is %q, want %q", round, got, boot)
		}
	}
	l.stop()
	if _, err := fetch(port, "/"); err == nil {
		t.Error("Ctrl-C has stopped no machine")
	}
	l.start()
	l.eventually(2*time.Minute, "the instance runs again", func() error {
		list := l.instances()
		if len(list) != 1 || list[0].State != "ready" || list[0].Attempt != 2 {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
}

// connection is one connection to an app, which is never made again. It is none of package http's client: that gives
// up connections by itself when it gets too little of the processor.
type connection struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (l *lab) connect(t *testing.T, port int) *connection {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &connection{t, conn, bufio.NewReader(conn)}
}

func (c *connection) fetch(path string) (string, error) {
	if err := c.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: app\r\n\r\n", path); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return strings.TrimSpace(string(b)), err
}

func (c *connection) get(path string) string {
	c.t.Helper()
	text, err := c.fetch(path)
	if err != nil {
		c.t.Error(err)
	}
	return text
}

// TestKillDuringDeploy kills pinnace dev in the middle of a deploy, at a different moment in each round,
// and starts it again: the log verifies, and what runs is all of one release or all of the other.
func TestKillDuringDeploy(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", web("app", port))
	refs := []string{
		l.push("app", "v1", workloadImage(t, "1", nil)),
		l.push("app", "v2", workloadImage(t, "2", nil)),
	}
	l.must("deploy", "-f", m, "--image", refs[0])
	for round := range 3 {
		// The three rounds are spread over the time that a deploy takes here.
		after := time.Duration(round)*2*time.Second + rand.N(2*time.Second)
		deploy := make(chan result, 1)
		go func() { deploy <- l.pinnace("deploy", "-f", m, "--image", refs[(round+1)%2]) }()
		time.Sleep(after)
		l.kill()
		t.Logf("round %d: killed after %s", round, after.Round(time.Millisecond))
		l.start()
		<-deploy

		l.eventually(2*time.Minute, "the deployment has ended, and one instance is ready", func() error {
			status := l.must("status")
			if !strings.Contains(status, "1/1") || strings.Contains(status, "running") || strings.Contains(status, "rolling-back") {
				return fmt.Errorf("%s", status)
			}
			list := l.instances()
			if len(list) != 1 || list[0].State != "ready" {
				return fmt.Errorf("%+v", list)
			}
			return nil
		})
		if got := l.get(port, "/"); got != "version 1" && got != "version 2" {
			t.Errorf("round %d: got %q", round, got)
		}
		if out := l.must("audit", "verify"); !strings.HasPrefix(out, "ok ") {
			t.Errorf("round %d: audit verify: %s", round, out)
		}
	}
}
