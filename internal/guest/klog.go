//go:build linux

package guest

import (
	"os/exec"
	"regexp"
	"strconv"
	"testing"
)

// killedLine matches the line of __oom_kill_process in the kernel's log.
var killedLine = regexp.MustCompile(`Killed process (\d+) \((.*)\) total-vm:\d+kB, anon-rss:(\d+)kB, file-rss:(\d+)kB, shmem-rss:(\d+)kB`)

// clearLog clears the kernel's log.
func clearLog(t testing.TB) {
	t.Helper()
	if err := exec.Command(busybox, "dmesg", "-c").Run(); err != nil {
		t.Fatal(err)
	}
}

// oomKills returns the victims of the OOM killer in the kernel's log. It does not contain
// their swap.
func oomKills(t testing.TB) (victims []victim) {
	t.Helper()
	log, err := exec.Command(busybox, "dmesg").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range killedLine.FindAllStringSubmatch(string(log), -1) {
		number := func(s string) int64 {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		pages := func(kib string) int64 { return number(kib) << 10 / pageSize }
		victims = append(victims, victim{PID: int(number(m[1])), Comm: m[2], AnonPages: pages(m[3]), FilePages: pages(m[4]), ShmemPages: pages(m[5])})
	}
	return victims
}
