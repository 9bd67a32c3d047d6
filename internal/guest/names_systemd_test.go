//go:build linux

package guest

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// startUnit starts a unit with a command and a limit, and waits until it is OOM-killed.
func startUnit(t *testing.T, unit, command string) {
	t.Helper()
	writeFile(t, "/run/systemd/system/"+unit, "[Service]\nType=oneshot\nMemoryMax=20M\nMemorySwapMax=0\nExecStart="+command+"\n")
	for _, args := range [][]string{{"daemon-reload"}, {"start", unit}} {
		out, err := exec.Command("/usr/bin/systemctl", args...).CombinedOutput()
		if (err == nil) != (args[0] == "daemon-reload") {
			t.Fatalf("systemctl %s: %v: %s", args, err, out)
		}
	}
	out, err := exec.Command("/usr/bin/systemctl", "show", "--property", "Result", unit).CombinedOutput()
	if string(out) != "Result=oom-kill\n" {
		t.Fatalf("%v: %s", err, out)
	}
}

const fillMemory = `sh -c "x=; while :; do x=$$x$$x.; done"` // $$ is the $ of a unit file

// TestSystemdUnit selects a unit by its name. It is started twice, and killed twice: the text has
// both kills, and its table both cgroups.
func TestSystemdUnit(t *testing.T) {
	if !Enter(t, Machine{CPUs: 1, Systemd: true, Kernels: Kernels[2:3]}) {
		return
	}
	clearLog(t)
	tr := trace(t, "-cgroup", "leaky.service")
	for range 2 {
		startUnit(t, "leaky.service", busybox+" "+fillMemory)
	}
	tr.stop(t)
	cgroups := make(map[uint64]bool)
	for _, e := range tr.charges(t) {
		cgroups[e.CgroupID] = true
		if e.Cgroup != "/system.slice/leaky.service" {
			t.Errorf("%v", e)
		}
	}
	for _, n := range []string{"#1", "#2"} {
		if want := " leaky.service " + n + " ran out of memory"; strings.Count(tr.stderr.String(), want) != 1 {
			t.Errorf("not once %q in %s", want, tr.stderr)
		}
	}
	checkVerdict(t, regexp.MustCompile(` #[12] ran`).ReplaceAllString(tr.stderr.String(), " ran"), "leaky.service", "", "memory", 20<<20)
	if n := len(regexp.MustCompile(`(?m)^leaky\.service #[12] \(.* to .*\) `).FindAllString(tr.stderr.String(), -1)); n != 2 || len(cgroups) != 2 {
		t.Errorf("%d rows of %d cgroups: %s", n, len(cgroups), tr.stderr)
	}
	if want := "chargetrace: there is no unit leaky.service yet: waiting for one\n"; !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("no %q in %s", want, tr.stderr)
	}
}

// TestNspawn names a container of systemd-nspawn.
func TestNspawn(t *testing.T) {
	if !Enter(t, Machine{CPUs: 1, Systemd: true, Kernels: Kernels[2:3]}) {
		return
	}
	clearLog(t)
	root := t.TempDir()
	writeFile(t, root+"/usr/bin/busybox", readFile(t, busybox))
	writeFile(t, root+"/etc/os-release", "")
	if out, err := exec.Command(busybox, "chmod", "755", root+"/usr/bin/busybox").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	tr := trace(t, "-container", "web")
	startUnit(t, "systemd-nspawn@web.service", "/usr/bin/systemd-nspawn --keep-unit --register=no --quiet --machine web --directory "+root+" /usr/bin/busybox "+fillMemory)
	tr.stop(t)
	for _, e := range tr.charges(t) {
		if c := e.Container; c == nil || c.Runtime != "machine" || c.Name != "web" {
			t.Fatalf("%v: container %+v", e, c)
		}
	}
	checkVerdict(t, tr.stderr.String(), "machine web", "", "memory", 20<<20)
}
