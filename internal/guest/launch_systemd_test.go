//go:build linux

package guest

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLaunchSystemd launches commands on a system whose cgroups belong to systemd.
func TestLaunchSystemd(t *testing.T) {
	if !Enter(t, Machine{CPUs: 1, Systemd: true, Kernels: Kernels[2:3]}) {
		return
	}
	const slice = cgroupRoot + "/system.slice"
	scope := func(tr *tracer) string { return fmt.Sprintf("%s/chargetrace-%d.scope", slice, tr.Process.Pid) }
	t.Run("OOM", func(t *testing.T) {
		tr := startTracer(t, "", launching("-memory 10M", workloadPath, "-now", "touch", "20")...)
		tr.status(t, 128+int(unix.SIGKILL))
		want := fmt.Sprintf("was killed by the OOM killer: chargetrace-%d.scope/command ran out of memory\n", tr.Process.Pid)
		if !strings.Contains(tr.stderr.String(), want) {
			t.Errorf("no %q in %s", want, tr.stderr)
		}
		waitForWrite(t, slice, func() bool { return !exists(scope(tr)) })
	})
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			tr := startTracer(t, "", launching("-memory 50M", hold...)...)
			hs, pids := tr.held(t, 1)
			g := cgroup(scope(tr) + "/command")
			if max := g.number(t, "memory.max", ""); max != 50<<20 {
				t.Errorf("memory.max is %d", max)
			}
			if pid := g.number(t, "cgroup.procs", ""); pid != int64(pids[0]) {
				t.Errorf("in the cgroup is %d, want %d", pid, pids[0])
			}
			if err := tr.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			hs.waitExited(t)
			waitForWrite(t, slice, func() bool { return !exists(scope(tr)) })
		})
	}
	t.Run("failure", func(t *testing.T) {
		argv := launching("-memory 50M", script("exit 0")...)
		cmd := cmdOf(argv)
		cmd.SysProcAttr = nobody
		mustFail(t, cmd, 1, "chargetrace: cannot make a cgroup: systemd-run: exit status 1: ", "\nhint: ")
		cmd = cmdOf(argv)
		cmd.Env = []string{"PATH="}
		mustFail(t, cmd, 1, "systemd-run", "not found", "\nhint: ")
	})
}
