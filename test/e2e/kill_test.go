package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

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
