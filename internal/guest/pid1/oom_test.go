//go:build linux

package pid1

import (
	"testing"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// TestOOMVictim reads records as /dev/kmsg of Linux 6.12 gives them.
func TestOOMVictim(t *testing.T) {
	const chosen = "6,412,1930911,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=workload,mems_allowed=0," +
		"oom_memcg=/workload,task_memcg=/workload,task=postgres,pid=99,uid=70\n SUBSYSTEM=x\n"
	const killed = "3,413,1931000,-;Memory cgroup out of memory: Killed process 98 (sh) total-vm:102400kB, anon-rss:90000kB, file-rss:0kB, UID:0\n"
	for name, tt := range map[string]struct {
		records []string
		want    *guest.Victim
	}{
		"nothing":            {nil, nil},
		"another's log":      {[]string{"6,1,2,-;random: crng init done\n", "garbage", ";", "x,1,2;oom-kill:,task=a,pid=5,uid=0"}, nil},
		"chosen":             {[]string{chosen, killed}, &guest.Victim{PID: 99, Name: "postgres"}},
		"killed only":        {[]string{killed, "3,414,1931001,-;Memory cgroup out of memory: Killed process 97 (cat) total-vm:1kB"}, &guest.Victim{PID: 98, Name: "sh"}},
		"the whole guest":    {[]string{"3,9,9,-;Out of memory: Killed process 7 (a) b) total-vm:1kB, anon-rss:1kB\n"}, &guest.Victim{PID: 7, Name: "a) b"}},
		"the last one":       {[]string{"6,1,1,-;oom-kill:x=y,task=first,pid=5,uid=0\n", chosen}, &guest.Victim{PID: 99, Name: "postgres"}},
		"a name that lies":   {[]string{"6,1,1,-;oom-kill:x=y,task=a,pid=1,uid=0,pid=55,uid=0\n"}, &guest.Victim{PID: 55, Name: "a,pid=1,uid=0"}},
		"written by others":  {[]string{"14,1,1,-;oom-kill:x=y,task=fake,pid=5,uid=0\n", "12,1,1,-;Killed process 5 (fake) total-vm:1kB\n"}, nil},
		"no number":          {[]string{"6,1,1,-;oom-kill:x=y,task=a,pid=-3,uid=0\n", "6,1,1,-;Killed process x (a) total-vm:\n"}, nil},
		"cut off":            {[]string{"6,1,1,-;oom-kill:constraint=CONSTRAINT_MEMCG\n", "6,1,1,-;Killed process 5 (a\n"}, nil},
		"a line of a record": {[]string{"6,1,1,-;text\noom-kill:x=y,task=a,pid=3,uid=0\n"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var v victims
			for _, r := range tt.records {
				v.note(r)
			}
			got := v.last()
			if (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzOOMVictim(f *testing.F) {
	f.Add("6,1,1,-;oom-kill:x=y,task=a,pid=1,uid=0\n")
	f.Add("3,1,1,-;Killed process 5 (a) total-vm:1kB\n")
	f.Fuzz(func(t *testing.T, record string) {
		var v victims
		v.note(record)
		if got := v.last(); got != nil && got.PID <= 0 {
			t.Errorf("process %d", got.PID)
		}
	})
}
