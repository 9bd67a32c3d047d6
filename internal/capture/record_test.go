//go:build linux

package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"chargetrace/internal/event"
	"chargetrace/internal/guest"
	"chargetrace/internal/vm"
)

// TestRecord records a trace with its raw samples, and reads the samples again. With
// UPDATE_RECORDINGS it runs on all kernels, and writes testdata/KERNEL.raw and
// testdata/KERNEL.ctrace.
func TestRecord(t *testing.T) {
	m := guest.Exact.On(guest.One...)
	if os.Getenv("UPDATE_RECORDINGS") != "" {
		m = guest.Exact
		m.Kept = func(t *testing.T, k vm.Kernel, name string, content []byte) {
			if err := os.WriteFile(filepath.Join("testdata", k.String()+name), content, 0o644); err != nil {
				t.Error(err)
			}
		}
	}
	if !guest.Enter(t, m) {
		return
	}

	parent := makeCgroup(t, "/sys/fs/cgroup/recorded")
	leaky, steady, other := makeCgroup(t, parent+"/leaky"), makeCgroup(t, parent+"/steady"), makeCgroup(t, "/sys/fs/cgroup/other")
	writeFile(t, leaky+"/memory.max", fmt.Sprint(400*os.Getpagesize()))
	tracer, err := Start(Options{
		CgroupIDs: []event.CgroupID{cgroupID(t, parent)},
		AboveIDs:  []event.CgroupID{cgroupID(t, "/sys/fs/cgroup")},
		Forks:     true, KernelStacks: true, UserStacks: true, Net: true, Releases: true,
		BufferBytes: 32 << 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	gate := &gatedRing{ring: tracer.ring, released: make(chan event.CgroupID, 64)}
	tracer.ring = gate
	rec := recordRaw(tracer.reader, tracer.Info())

	var raw, recording bytes.Buffer
	var recordErr error
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		recordErr = rec.record(&raw, &recording)
	}()
	loseEvents := func() { runWorkload(t, steady, "churn", "8") }
	for range 2 {
		gate.Lock()
		loseEvents()
		gate.Unlock()
		runWorkload(t, steady, "steady", "1", "200") // the reader sleeps and wakes
	}
	runWorkload(t, other, "touch", "1") // filtered
	gone := makeCgroup(t, "/sys/fs/cgroup/gone")
	goneID := cgroupID(t, gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	for <-gate.released != goneID {
	}
	runWorkload(t, leaky, "touch", "2") // hits the limit and is OOM-killed
	gate.Lock()
	loseEvents() // no charge follows
	tracer.Stop()
	gate.Unlock()
	<-recorded
	if recordErr != nil {
		t.Fatal(recordErr)
	}
	if n := chargeMisses(t, tracer.programs); n != 0 {
		t.Errorf("the kernel missed %d charges", n)
	}
	checkRecorded(t, bytes.NewReader(recording.Bytes()), leaky)
	checkRaw(t, bytes.NewReader(raw.Bytes()), bytes.NewReader(recording.Bytes()))
	guest.Keep(t, ".raw", raw.Bytes())
	guest.Keep(t, ".ctrace", recording.Bytes())
}

// gatedRing blocks the reader at its next record while a test holds the lock.
// It sends the cgroups that are released.
type gatedRing struct {
	ring
	sync.Mutex
	released chan event.CgroupID
}

func (g *gatedRing) next() ([]byte, error) {
	sample, err := g.ring.next()
	var e event.Event
	if err == nil && e.Decode(sample) == nil && e.Type == event.CgroupReleased {
		g.released <- e.Cgroup
	}
	g.Lock()
	defer g.Unlock()
	return sample, err
}

// checkRecorded compares the recording with the kernel's counts for the cgroup at its
// limit. It also requires each case that the reader handles separately.
func checkRecorded(t *testing.T, recording io.Reader, leaky string) {
	t.Helper()
	events, names, counts := recorded(t, recording)
	leakyID := cgroupID(t, leaky)
	cases := make(map[string]uint64)
	for _, e := range events {
		switch e.Type {
		case event.Charge:
			cases["charge"]++
			cases[e.Outcome.String()]++
			if e.Outcome == event.Failed && e.Cgroup == leakyID {
				cases["failed in leaky"]++
			}
			if e.Flags&event.Retry != 0 {
				cases["retry"]++
			}
			if e.KernelStack != 0 {
				cases["kernel stack"]++
			}
			if e.UserStack != 0 {
				cases["user stack"]++
			}
		case event.Lost:
			cases["lost"] += e.LostCharges
			cases["loss"]++
		case event.ReclaimBegin:
			cases["reclaim begin"]++
		case event.ReclaimEnd:
			cases["reclaim end"]++
		case event.OOMKill:
			cases["OOM kill"]++
		case event.Fork:
			cases["fork"]++
		case event.Uncharge:
			cases["uncharge"]++
		}
	}
	for e := range names {
		if e.Type == event.CgroupName {
			cases["cgroup "+e.Name]++
		}
	}
	t.Logf("%d events, %v, %+v", len(events), cases, counts)
	for name, want := range map[string]uint64{
		"charge": counts.Seen - counts.Filtered - counts.Lost, "lost": counts.Lost, "retry": cases["miss"],
		"failed in leaky": kernelCount(t, leaky, "max"), "OOM kill": kernelCount(t, leaky, "oom_kill"),
		"loss": 3, "reclaim end": cases["reclaim begin"], "cgroup leaky": 1, "cgroup steady": 1,
	} {
		if cases[name] != want {
			t.Errorf("%d × %s, want %d", cases[name], name, want)
		}
	}
	for _, name := range []string{
		"miss", "failed", "reclaim begin", "OOM kill", "fork", "uncharge", "kernel stack", "user stack",
	} {
		if cases[name] == 0 {
			t.Errorf("the trace has no %s", name)
		}
	}
	if counts.Filtered == 0 || counts.LostNonCharge == 0 {
		t.Errorf("counts %+v", counts)
	}
}

// chargeMisses returns the number of charges that did not reach the programs. The counts'
// Missed also includes uncharges: the kernel skips an fentry program in an interrupt during
// its own run.
func chargeMisses(t *testing.T, p *programs) uint64 {
	t.Helper()
	n := p.kprobeMisses
	for _, prog := range p.loaded {
		if !prog.calls || prog.Type() != ebpf.Kprobe {
			continue
		}
		// Linux 5.10 does not count them.
		if stats, err := prog.Stats(); err == nil {
			n += stats.RecursionMisses
		} else if !errors.Is(err, ebpf.ErrNotSupported) {
			t.Error(err)
		}
	}
	return n
}

// kernelCount returns a value of memory.events.
func kernelCount(t *testing.T, cgroup, key string) uint64 {
	t.Helper()
	content, err := os.ReadFile(cgroup + "/memory.events")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == key {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("memory.events has no %s:\n%s", key, content)
	return 0
}

func makeCgroup(t *testing.T, dir string) string {
	t.Helper()
	writeFile(t, filepath.Dir(dir)+"/cgroup.subtree_control", "+memory")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func cgroupID(t *testing.T, dir string) event.CgroupID {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return event.CgroupID{ID: st.Ino}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0); err != nil {
		t.Fatal(err)
	}
}

// runWorkload runs a work of internal/guest/testdata/workload.c in a cgroup, to its exit
// or kill.
func runWorkload(t *testing.T, cgroup string, work ...string) {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/usr/bin/workload", append([]string{"-now"}, work...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || len(out) > 0 {
		t.Fatalf("%s: %v: %s", cmd, err, out)
	}
}
