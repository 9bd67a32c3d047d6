//go:build linux

package capture

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

func TestRoundBuffer(t *testing.T) {
	page := os.Getpagesize()
	for in, want := range map[int]int{1: page, page: page, page + 1: 2 * page, 3 * page: 4 * page, MaxBufferBytes: MaxBufferBytes} {
		if got := RoundBuffer(in); got != want {
			t.Errorf("RoundBuffer(%d) = %d, want %d", in, got, want)
		}
	}
}

// good are the files of a machine that passes all checks.
var good = map[string]string{
	"proc/sys/kernel/osrelease":                "6.1.0-50-cloud-amd64\n",
	"sys/kernel/btf/vmlinux":                   "",
	"proc/kallsyms":                            "ffffffff81000000 T page_counter_cancel\nffffffff81000100 T page_counter_try_charge\n",
	"sys/bus/event_source/devices/kprobe/type": "8\n",
	"sys/kernel/security/lockdown":             "none [integrity] confidentiality\n",
	"proc/self/status":                         "Name:\tx\nCapEff:\t000000c000080000\nCapBnd:\t0\n",
	"proc/sys/kernel/perf_event_paranoid":      "2\n",
	"proc/self/uid_map":                        "         0          0 4294967295\n",
	"proc/self/mounts":                         "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
	"sys/fs/cgroup/cgroup.controllers":         "cpuset cpu io memory pids\n",
}

// absent is the content of a file that does not exist.
const absent = "\x00"

// makeMachine returns the root of a machine that differs from good in some files.
func makeMachine(t *testing.T, changes map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	files := maps.Clone(good)
	maps.Copy(files, changes)
	for name, content := range files {
		if content == absent {
			continue
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "proc/self/ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	if changes["sys/bus/event_source/devices/kprobe/type"] == absent {
		os.RemoveAll(filepath.Join(root, "sys/bus"))
	}
	if err := os.Symlink("pid:[4026531836]", filepath.Join(root, "proc/self/ns/pid")); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name    string
		changes map[string]string
		// The name and the result of the check that differs from good.
		finding string
		state   State
		detail  string
		hint    string
		// Whether it prevents tracing.
		noKprobe, noFentry bool
		noStacks           bool // it also prevents resolving kernel functions
	}{
		{name: "good"},
		{
			name: "old kernel", changes: map[string]string{
				"proc/sys/kernel/osrelease": "5.9.16-generic", "proc/self/status": "Name:\tx\nCapEff:\t000000c001080000\n",
			},
			finding: "kernel", state: Lacking, detail: "is too old", hint: "5.10 or later", noKprobe: true, noFentry: true,
		},
		{
			name: "no BTF", changes: map[string]string{"sys/kernel/btf/vmlinux": absent},
			finding: "BTF", state: Lacking, detail: "no /sys/kernel/btf/vmlinux", hint: "CONFIG_DEBUG_INFO_BTF=y", noKprobe: true, noFentry: true,
		},
		{
			name: "no function", changes: map[string]string{"proc/kallsyms": "ffffffff81000000 t my_page_counter_try_charge\nffffffff81000100 t page_counter_try_charge.cold\n"},
			finding: "function", state: Lacking, detail: "not in /proc/kallsyms", hint: "CONFIG_MEMCG=y", noKprobe: true, noFentry: true,
		},
		{
			name: "no kallsyms", changes: map[string]string{"proc/kallsyms": absent},
			finding: "function", state: Unknown, noStacks: true,
		},
		{
			name: "no kprobes", changes: map[string]string{"sys/bus/event_source/devices/kprobe/type": absent},
			finding: "kprobes", state: Lacking, detail: "no kprobes", hint: "-attach fentry", noKprobe: true,
		},
		{
			name: "locked down", changes: map[string]string{"sys/kernel/security/lockdown": "none integrity [confidentiality]"},
			finding: "lockdown", state: Lacking, hint: "lockdown=confidentiality", noKprobe: true, noFentry: true,
		},
		{
			name: "no securityfs", changes: map[string]string{"sys/kernel/security/lockdown": absent},
			finding: "lockdown", state: Unknown,
		},
		{
			name: "no capabilities", changes: map[string]string{"proc/self/status": "Name:\tx\nCapEff:\t0000000000080000\n"},
			finding: "capabilities", state: Lacking, detail: "missing CAP_BPF and CAP_PERFMON", hint: "setcap cap_bpf,cap_perfmon+ep", noKprobe: true, noFentry: true,
		},
		{
			name: "root of old", changes: map[string]string{"proc/self/status": "Name:\tx\nCapEff:\t0000000000280000\n"},
		},
		{
			name: "5.10 without CAP_SYS_RESOURCE", changes: map[string]string{"proc/sys/kernel/osrelease": "5.10.0"},
			finding: "capabilities", state: Lacking, detail: "missing CAP_SYS_RESOURCE", hint: "setcap cap_bpf,cap_perfmon,cap_sys_resource+ep", noKprobe: true, noFentry: true,
		},
		{
			name: "Debian's perf events", changes: map[string]string{"proc/sys/kernel/perf_event_paranoid": "3\n"},
			finding: "perf events", state: Unknown, detail: "kernel.perf_event_paranoid is 3", hint: "-attach fentry",
		},
		{
			name: "hidden functions", changes: map[string]string{"proc/kallsyms": "0000000000000000 T page_counter_try_charge\n"},
			finding: "kernel stacks", state: Lacking, detail: "-stack has addresses, and causes are unknown", hint: "kptr_restrict=1",
		},
		{
			name: "no CAP_SYS_PTRACE", changes: map[string]string{"proc/self/status": "Name:\tx\nCapEff:\t000000c000000000\n"},
			finding: "user stacks", state: Lacking, detail: "missing CAP_SYS_PTRACE", hint: "run it with sudo",
		},
		{
			name: "user namespace", changes: map[string]string{"proc/self/uid_map": "0 1000 1\n"},
			finding: "capabilities", state: Lacking, detail: "user namespace", hint: "outside the container", noKprobe: true, noFentry: true,
		},
		{
			name: "v1", changes: map[string]string{"proc/self/mounts": "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"},
			finding: "cgroup", state: OK, detail: "v1, memory at /sys/fs/cgroup/memory",
		},
		{
			name: "hybrid", changes: map[string]string{"proc/self/mounts": "cgroup2 /u cgroup2 rw 0 0\ncgroup /m cgroup rw,memory 0 0\n"},
			finding: "cgroup", state: OK, detail: "hybrid: memory is v1 at /m, v2 is at /u",
		},
		{
			name: "nothing mounted", changes: map[string]string{"proc/self/mounts": "", "proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t1\n"},
			finding: "cgroup", state: Lacking, hint: "mount -t cgroup2",
		},
		{
			name: "controller disabled", changes: map[string]string{
				"sys/fs/cgroup/cgroup.controllers": "cpu\n", "proc/cgroups": "memory\t0\t1\t0\n",
			},
			finding: "memory controller", state: Lacking, detail: "nothing is ever charged", hint: "cgroup_enable=memory", noKprobe: true, noFentry: true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := makeMachine(t, tc.changes)
			findings := check(root)
			for _, f := range findings {
				if f.Name == tc.finding {
					if f.State != tc.state || !strings.Contains(f.Detail, tc.detail) || !strings.Contains(f.Hint, tc.hint) {
						t.Errorf("%+v", f)
					}
				} else if want := f.Name == "kernel stacks" && tc.noStacks || f.Name == "fentry" && UntestedWarning(runtime.GOARCH) != ""; (f.State != OK) != want {
					t.Errorf("unexpected: %+v", f)
				}
			}
			for attach, blocked := range map[Attach]bool{
				Kprobe: tc.noKprobe, Fentry: tc.noFentry, Auto: tc.noKprobe && tc.noFentry,
			} {
				if f := FirstBlocking(findings, attach); (f != nil) != blocked {
					t.Errorf("%s is blocked by %+v, want %v", attach, f, blocked)
				} else if f != nil && f.Name != tc.finding {
					t.Errorf("%s is blocked by %+v", attach, f)
				}
			}
		})
	}
}

// TestExplain explains errors on a machine that lacks something, and on a good one.
func TestExplain(t *testing.T) {
	whole := makeMachine(t, nil)
	noKprobes := makeMachine(t, map[string]string{"sys/bus/event_source/devices/kprobe/type": absent})
	paranoid := makeMachine(t, map[string]string{"proc/sys/kernel/perf_event_paranoid": "3\n"})
	for _, tc := range []struct {
		root         string
		err          error
		attach       Attach
		detail, hint string
	}{
		{noKprobes, unix.ENOENT, Kprobe, "no kprobes", "-attach fentry"},
		{noKprobes, unix.ENOMEM, Fentry, "cannot allocate memory", "smaller -buffer"},
		{paranoid, unix.EACCES, Kprobe, "kernel.perf_event_paranoid is 3", "-attach fentry"},
		{whole, unix.EACCES, Kprobe, "permission denied", "report this"},
		{whole, unix.EPERM, Kprobe, "operation not permitted", "seccomp"},
		{whole, unix.E2BIG, Kprobe, "argument list too long", "report this"},
	} {
		f := explain(tc.root, fmt.Errorf("start: %w", tc.err), tc.attach)
		if f.State != Lacking || !strings.Contains(f.Detail, tc.detail) || !strings.Contains(f.Hint, tc.hint) {
			t.Errorf("%v with %s: %+v", tc.err, tc.attach, f)
		}
	}
}

// TestStartAny checks which ways to attach are tried, and in which order.
func TestStartAny(t *testing.T) {
	const fails, lacks, works = "fails", "lacks", ""
	errs := map[string]error{fails: unix.EPERM, lacks: btf.ErrNotFound}
	for _, tc := range []struct {
		options Options
		results map[string]string // by way; other ways work
		want    string
		err     string
	}{
		{Options{}, nil, "kprobe/kprobe", ""},
		{Options{}, map[string]string{"kprobe/kprobe": fails}, "kprobe/kprobe", "operation not permitted"},
		{Options{Attach: Kprobe, Net: true}, nil, "kprobe/kprobe", ""},
		{Options{Attach: Fentry, Net: true}, map[string]string{"fentry/fentry": lacks}, "fentry/fentry", "not found"},
		{Options{Attach: Auto}, nil, "kprobe/kprobe", ""},
		{Options{Attach: Auto}, map[string]string{"kprobe/kprobe": fails}, "kprobe/kprobe fentry/fentry", ""},
		{Options{Attach: Auto}, map[string]string{"kprobe/kprobe": fails, "fentry/fentry": lacks}, "kprobe/kprobe fentry/fentry", "operation not permitted; not found"},
		{Options{Net: true}, nil, "kprobe/fentry", ""},
		{Options{Net: true}, map[string]string{"kprobe/fentry": lacks}, "kprobe/fentry kprobe/kprobe", ""},
		{Options{Net: true}, map[string]string{"kprobe/fentry": fails}, "kprobe/fentry", "operation not permitted"},
		{Options{Net: true, Attach: Auto}, map[string]string{"kprobe/fentry": lacks, "kprobe/kprobe": fails}, "kprobe/fentry kprobe/kprobe fentry/fentry", ""},
		{Options{Net: true, Attach: Auto}, map[string]string{"kprobe/fentry": fails}, "kprobe/fentry fentry/fentry", ""},
	} {
		var tried []string
		var last *Tracer
		tracer, err := startAny(&tc.options, func(attach, attachNet Attach) (*Tracer, error) {
			way := string(attach + "/" + attachNet)
			tried = append(tried, way)
			last = nil
			if err := errs[tc.results[way]]; err != nil {
				return nil, err
			}
			last = new(Tracer)
			return last, nil
		})
		message := ""
		if err != nil {
			message = err.Error()
		}
		if got := strings.Join(tried, " "); got != tc.want || message != tc.err {
			t.Errorf("%+v, %v: tried %s, %v", tc.options, tc.results, got, err)
		}
		if (tracer != nil) != (err == nil) || tracer != last {
			t.Errorf("%+v, %v: %+v, %v", tc.options, tc.results, tracer, err)
		}
	}
}

func TestInfo(t *testing.T) {
	tr := &Tracer{info: newInfo(&Options{KernelStacks: true, Net: true}, Kprobe, Kprobe), lacking: []string{"reclaim"}}
	h := tr.Info()
	if h.PageSize != os.Getpagesize() || !h.KernelStacks || h.UserStacks || !h.Net || h.StartBootNanos == 0 || h.StartBootNanos > BootNanos() {
		t.Errorf("%+v", h)
	}
	if wall := time.Unix(0, h.BootWallNanos+int64(h.StartBootNanos)); wall.After(time.Now()) || wall.Year() < 2024 {
		t.Errorf("began at %v", wall)
	}
	if !slices.Equal(tr.Lacking(), []string{"reclaim"}) {
		t.Errorf("%q", tr.Lacking())
	}
}

func TestFentryByArchitecture(t *testing.T) {
	if f := checkFentry("6.1.0", "arm64"); f.State != Lacking || f.Hint == "" {
		t.Errorf("arm64, 6.1: %+v", f)
	}
	if f := checkFentry("6.4.0", "arm64"); f.State != OK {
		t.Errorf("arm64, 6.4: %+v", f)
	}
	if f := checkFentry("6.4.0", "riscv64"); f.State != Unknown || f.Detail != "never tested on riscv64" {
		t.Errorf("riscv64: %+v", f)
	}
}

// TestAttached checks the Info's Attach, and when LacksFentry reports kprobes in place of
// fentry.
func TestAttached(t *testing.T) {
	for _, tc := range []struct {
		net                      bool
		asked, attached, netOnly Attach
		want                     string
		lacks                    bool
	}{
		{false, Default, Kprobe, Kprobe, "kprobe", false},
		{true, Default, Kprobe, Fentry, "kprobe and fentry", false},
		{true, Default, Kprobe, Kprobe, "kprobe", true},
		{true, Auto, Kprobe, Kprobe, "kprobe", true},
		{true, Kprobe, Kprobe, Kprobe, "kprobe", false},
		{true, Auto, Fentry, Fentry, "fentry", false},
	} {
		tr := &Tracer{info: newInfo(&Options{Net: tc.net}, tc.attached, tc.netOnly), asked: tc.asked, attachedNet: tc.netOnly}
		if got := tr.Info().Attach; got != tc.want || tr.LacksFentry() != tc.lacks {
			t.Errorf("%+v: %q, lacks fentry: %t", tc, got, tr.LacksFentry())
		}
	}
	for err, want := range map[error]bool{
		nil:             false,
		unix.Errno(524): true, ebpf.ErrNotSupported: true, btf.ErrNotFound: true,
		unix.EPERM: false, unix.ENOMEM: false, unix.EINVAL: false,
	} {
		if err != nil {
			err = fmt.Errorf("attach: %w", err)
		}
		if got := lacksFentry(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}
