//go:build linux

package capture

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"chargetrace/internal/symbol"
)

// State is the result of a [Finding].
type State int

const (
	// OK: present.
	OK State = iota
	// Lacking: absent. Hint says what to do.
	Lacking
	// Unknown: this user lacks the permission to check it.
	Unknown
)

func (s State) String() string {
	switch s {
	case OK:
		return "ok"
	case Lacking:
		return "lacking"
	}
	return "unknown"
}

// Finding is the result of one check of the kernel or the user.
type Finding struct {
	Name  string
	State State
	// Detail describes the result.
	Detail string
	// Hint is what to do about it; empty if nothing.
	Hint string
	// Blocks are the ways to attach that need it.
	Blocks []Attach
}

var (
	both       = []Attach{Kprobe, Fentry}
	onlyKprobe = []Attach{Kprobe}
	onlyFentry = []Attach{Fentry}
)

// Check reports what this kernel and this user offer. It changes nothing.
func Check() []Finding { return check("/") }

// Try attaches in the given way and detaches again.
func Try(attach Attach) Finding {
	name := "attach " + string(attach)
	t, err := Start(Options{Attach: attach, BufferBytes: 1})
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		f := Explain(err, attach)
		f.Name = name
		return f
	}
	return Finding{Name: name, Detail: "attached and removed again", Blocks: []Attach{attach}}
}

// TryNet does the same with [Options.Net].
func TryNet() Finding {
	f := Finding{Name: "attach -net"}
	t, err := Start(Options{Net: true, BufferBytes: 1})
	if err != nil {
		f.State, f.Detail = Lacking, err.Error()
		return f
	}
	f.Detail = "attached with " + t.info.Attach + ", and removed again"
	if t.LacksFentry() {
		f.State, f.Detail = Lacking, NoFentryWarning
	}
	if err := t.Close(); err != nil {
		f.State, f.Detail = Lacking, err.Error()
	}
	return f
}

// Explain returns the cause of an error of [Start], and what to do about it.
func Explain(err error, attach Attach) Finding { return explain("/", err, attach) }

// explain is Explain for a machine with its files under root.
func explain(root string, err error, attach Attach) Finding {
	if f := FirstBlocking(check(root), attach); f != nil {
		return *f
	}
	perf := machine{root}.checkPerfEvents()
	f := Finding{State: Lacking, Detail: err.Error(), Blocks: []Attach{attach}}
	switch {
	case errors.Is(err, unix.EACCES) && perf.State != OK:
		f.Detail, f.Hint = perf.Detail, perf.Hint
	case errors.Is(err, unix.EPERM):
		f.Detail = "the kernel refused the program despite the required capabilities: operation not permitted"
		f.Hint = "a security module, seccomp or lockdown may forbid it; in a container, try outside; " +
			"sudo mount -t securityfs none /sys/kernel/security lets -check see lockdown"
	case errors.Is(err, unix.ENOMEM):
		f.Hint = "try a smaller -buffer"
	default:
		f.Hint = "run chargetrace -check; if every check is ok, please report this"
	}
	return f
}

// FirstBlocking returns the first finding that prevents attaching in the given way, or nil.
func FirstBlocking(findings []Finding, attach Attach) *Finding {
	if attach == Default {
		attach = Kprobe
	}
	if attach == Auto {
		if f := FirstBlocking(findings, Kprobe); f == nil {
			return nil
		}
		attach = Fentry
	}
	for i, f := range findings {
		if f.State == Lacking && slices.Contains(f.Blocks, attach) {
			return &findings[i]
		}
	}
	return nil
}

// check is Check for a machine with its files under root.
func check(root string) []Finding {
	m := machine{root: root}
	release := m.read("proc/sys/kernel/osrelease")
	return []Finding{
		checkKernel(release),
		m.checkBTF(),
		m.checkFunction(),
		m.checkKprobes(),
		checkFentry(release, runtime.GOARCH),
		m.checkLockdown(),
		m.checkCapabilities(release),
		m.checkPerfEvents(),
		m.checkCgroup(),
		m.checkMemoryController(),
		m.checkKernelStacks(),
		m.checkUserStacks(),
	}
}

// machine reads the files of a machine under root.
type machine struct{ root string }

func (m machine) path(name string) string { return filepath.Join(m.root, name) }

// read returns the text of a small file, or "" if it cannot be read.
func (m machine) read(name string) string {
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (m machine) exists(name string) bool {
	_, err := os.Stat(m.path(name))
	return err == nil
}

// atLeast reports whether a kernel release such as 6.1.0-50-cloud-amd64 is
// major.minor or later.
func atLeast(release string, major, minor int) bool {
	var ma, mi int
	if n, _ := fmt.Sscanf(release, "%d.%d", &ma, &mi); n != 2 {
		return false
	}
	return ma > major || ma == major && mi >= minor
}

func checkKernel(release string) Finding {
	f := Finding{Name: "kernel", Detail: "Linux " + release, Blocks: both}
	// BPF has ring buffers since 5.8, and BPF_PROG_TEST_RUN of raw tracepoints, which start
	// uses, since 5.10 (1b4d60ec162f).
	if !atLeast(release, 5, 10) {
		f.State = Lacking
		f.Detail += " is too old"
		f.Hint = "use Linux 5.10 or later"
	}
	return f
}

func (m machine) checkBTF() Finding {
	f := Finding{Name: "BTF", Detail: "/sys/kernel/btf/vmlinux", Blocks: both}
	if !m.exists("sys/kernel/btf/vmlinux") {
		f.State = Lacking
		f.Detail = "the kernel has no type information: no /sys/kernel/btf/vmlinux"
		f.Hint = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, such as a distribution's"
	}
	return f
}

func (m machine) checkFunction() Finding {
	f := Finding{Name: "function", Detail: TracedFunction + " is in /proc/kallsyms", Blocks: both}
	found := false
	err := m.kallsyms(func(_ uint64, _ byte, name []byte) bool {
		found = string(name) == TracedFunction
		return !found
	})
	switch {
	case found:
	case err != nil:
		f.State = Unknown
		f.Detail = "cannot read /proc/kallsyms"
	default:
		f.State = Lacking
		f.Detail = TracedFunction + " is not in /proc/kallsyms"
		f.Hint = "use a kernel built with CONFIG_MEMCG=y, and without link-time optimisation, which can inline the function"
	}
	return f
}

// kallsyms is [symbol.Kallsyms] of the machine's file.
func (m machine) kallsyms(yield func(address uint64, kind byte, name []byte) bool) error {
	file, err := os.Open(m.path("proc/kallsyms"))
	if err != nil {
		return err
	}
	defer file.Close()
	return symbol.Kallsyms(file, yield)
}

func (m machine) checkKprobes() Finding {
	f := Finding{Name: "kprobes", Detail: "/sys/bus/event_source/devices/kprobe", Blocks: onlyKprobe}
	if !m.exists("sys/bus/event_source/devices/kprobe") {
		f.State = Lacking
		f.Detail = "the kernel has no kprobes: no /sys/bus/event_source/devices/kprobe"
		f.Hint = "try -attach fentry, or use a kernel built with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y"
	}
	return f
}

// checkFentry checks the version only; [Try] attaches.
func checkFentry(release, arch string) Finding {
	f := Finding{Name: "fentry", Blocks: onlyFentry}
	if untested := UntestedWarning(arch); untested != "" {
		f.State, f.Detail = Unknown, untested
		return f
	}
	// An arm64 kernel got ftrace's direct calls with 2aa6ac03516d.
	major, minor := 5, 5
	if arch == "arm64" {
		major, minor = 6, 4
	}
	f.Detail = fmt.Sprintf("%s has it since Linux %d.%d", arch, major, minor)
	if !atLeast(release, major, minor) {
		f.State = Lacking
		f.Hint = "use -attach kprobe"
	}
	return f
}

// UntestedWarning returns a warning if the programs never ran on an architecture, else "".
func UntestedWarning(arch string) string {
	if arch == "amd64" || arch == "arm64" {
		return ""
	}
	return "never tested on " + arch
}

func (m machine) checkLockdown() Finding {
	f := Finding{Name: "lockdown", Blocks: both}
	// none [integrity] confidentiality
	_, rest, found := strings.Cut(m.read("sys/kernel/security/lockdown"), "[")
	mode, _, _ := strings.Cut(rest, "]")
	switch {
	case !found:
		f.State = Unknown
		f.Detail = "cannot read /sys/kernel/security/lockdown"
	case mode == "confidentiality":
		f.State = Lacking
		f.Detail = "the kernel is locked down (confidentiality): no program may read its memory"
		f.Hint = "boot without lockdown=confidentiality; lockdown=integrity, the mode of Secure Boot, allows tracing"
	default:
		f.Detail = mode
	}
	return f
}

// SymbolFindings returns the findings that leave addresses in the stacks that o asks for.
func SymbolFindings(o Options) []Finding {
	m := machine{root: "/"}
	var findings []Finding
	if o.KernelStacks {
		findings = append(findings, m.checkKernelStacks())
	}
	if o.UserStacks {
		findings = append(findings, m.checkUserStacks())
	}
	return slices.DeleteFunc(findings, func(f Finding) bool { return f.State != Lacking })
}

func (m machine) checkKernelStacks() Finding {
	f := Finding{Name: "kernel stacks", Detail: "kernel functions can be resolved"}
	if !m.showsSymbols() {
		f.State = Lacking
		f.Detail = "the kernel hides the addresses of its functions: -stack has addresses, and causes are unknown"
		f.Hint = "sudo sysctl kernel.kptr_restrict=1 and CAP_SYSLOG reveal them"
	}
	return f
}

// showsSymbols reports whether /proc/kallsyms has an address other than 0.
func (m machine) showsSymbols() (shown bool) {
	_ = m.kallsyms(func(address uint64, _ byte, _ []byte) bool {
		shown = address != 0
		return !shown
	})
	return shown
}

func (m machine) checkUserStacks() Finding {
	f := Finding{Name: "user stacks", Detail: "functions of all processes can be resolved"}
	switch effective, _ := m.effective(); {
	case !m.initialPIDNamespace():
		f.State = Lacking
		f.Detail = "traced processes cannot be read from another pid namespace: -ustack has addresses"
		f.Hint = "run it outside the container, or with the host's pid namespace"
	case effective>>unix.CAP_SYS_PTRACE&1 == 0:
		f.State = Lacking
		f.Detail = "missing CAP_SYS_PTRACE: -ustack has addresses for other users' processes"
		f.Hint = "run it with sudo, or grant CAP_SYS_PTRACE too"
	}
	return f
}

func (m machine) initialPIDNamespace() bool {
	ns, err := os.Readlink(m.path("proc/self/ns/pid"))
	return err == nil && ns == "pid:[4026531836]" // PROC_PID_INIT_INO of include/linux/proc_ns.h
}

// capability is a capability that tracing needs.
type capability struct {
	name string
	bit  int
}

var (
	capPerfmon     = capability{"CAP_PERFMON", unix.CAP_PERFMON}
	capBPF         = capability{"CAP_BPF", unix.CAP_BPF}
	capSysResource = capability{"CAP_SYS_RESOURCE", unix.CAP_SYS_RESOURCE}
)

func (m machine) checkCapabilities(release string) Finding {
	f := Finding{Name: "capabilities", Blocks: both}
	effective, ok := m.effective()
	if !ok {
		f.State = Unknown
		f.Detail = "cannot read /proc/self/status"
		return f
	}
	has := func(c capability) bool { return effective>>c.bit&1 == 1 }

	needed := []capability{capBPF, capPerfmon}
	var missing []string
	for _, c := range needed {
		// Both were split off from CAP_SYS_ADMIN in 5.8.
		if !has(c) && effective>>unix.CAP_SYS_ADMIN&1 == 0 {
			missing = append(missing, c.name)
		}
	}
	// Until 5.11 maps count against RLIMIT_MEMLOCK, which Start raises.
	if !atLeast(release, 5, 11) {
		needed = append(needed, capSysResource)
		if !has(capSysResource) {
			missing = append(missing, capSysResource.name)
		}
	}
	var setcap []string
	for _, c := range needed {
		setcap = append(setcap, strings.ToLower(c.name))
	}

	switch {
	case len(missing) > 0:
		f.State = Lacking
		f.Detail = "missing " + strings.Join(missing, " and ")
		f.Hint = fmt.Sprintf("run it with sudo, or grant the capabilities: sudo setcap %s+ep \"$(command -v chargetrace)\"",
			strings.Join(setcap, ","))
	case !m.initialUserNamespace():
		f.State = Lacking
		f.Detail = "root in a user namespace has no privileges over the kernel"
		f.Hint = "run it outside the container, or in a privileged one with the host's user namespace"
	default:
		f.Detail = strings.ToUpper(strings.Join(setcap, ", "))
	}
	return f
}

// effective returns the set of this process's effective capabilities.
func (m machine) effective() (set uint64, ok bool) {
	_, rest, found := strings.Cut(m.read("proc/self/status"), "\nCapEff:")
	hex, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	set, err := strconv.ParseUint(hex, 16, 64)
	return set, found && err == nil
}

// checkPerfEvents reads a setting of Debian's and related kernels. Above 2, some of them
// require CAP_SYS_ADMIN for perf events, which kprobes use.
func (m machine) checkPerfEvents() Finding {
	f := Finding{Name: "perf events", Blocks: onlyKprobe}
	level := m.read("proc/sys/kernel/perf_event_paranoid")
	effective, _ := m.effective()
	f.Detail = "kernel.perf_event_paranoid is " + level
	if n, err := strconv.Atoi(level); err != nil || n <= 2 || effective>>unix.CAP_SYS_ADMIN&1 == 1 {
		return f
	}
	f.State = Unknown
	f.Detail += ", and some kernels then require CAP_SYS_ADMIN"
	f.Hint = "if kprobe fails: sudo sysctl kernel.perf_event_paranoid=2, or -attach fentry"
	return f
}

// initialUserNamespace reports whether all user ids are mapped to themselves, which holds
// only in the initial user namespace (user_namespaces(7)).
func (m machine) initialUserNamespace() bool {
	fields := strings.Fields(m.read("proc/self/uid_map"))
	return len(fields) == 0 || slices.Equal(fields, []string{"0", "0", "4294967295"})
}

// cgroupMounts returns the mount points of cgroup v2 and of the memory controller of v1,
// or "".
func (m machine) cgroupMounts() (v2, v1Memory string) {
	for line := range strings.Lines(m.read("proc/self/mounts")) {
		// device, mount point, type, options; a blank in a path is \040
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		switch fields[2] {
		case "cgroup2":
			v2 = fields[1]
		case "cgroup":
			if slices.Contains(strings.Split(fields[3], ","), "memory") {
				v1Memory = fields[1]
			}
		}
	}
	return v2, v1Memory
}

func (m machine) checkCgroup() Finding {
	f := Finding{Name: "cgroup"}
	switch v2, v1 := m.cgroupMounts(); {
	case v1 != "" && v2 != "":
		f.Detail = fmt.Sprintf("hybrid: memory is v1 at %s, v2 is at %s", v1, v2)
	case v1 != "":
		f.Detail = "v1, memory at " + v1
	case v2 != "":
		f.Detail = "v2 at " + v2
	default:
		f.State = Lacking
		f.Detail = "no cgroup file system is mounted, so only the root cgroup exists"
		f.Hint = "sudo mount -t cgroup2 none /sys/fs/cgroup"
	}
	return f
}

func (m machine) checkMemoryController() Finding {
	f := Finding{Name: "memory controller", Detail: "enabled", Blocks: both}
	v2, v1 := m.cgroupMounts()
	if v1 != "" || v2 != "" && slices.Contains(strings.Fields(m.read(filepath.Join(v2, "cgroup.controllers"))), "memory") {
		return f
	}
	// subsys_name, hierarchy, num_cgroups, enabled
	for line := range strings.Lines(m.read("proc/cgroups")) {
		if fields := strings.Fields(line); len(fields) == 4 && fields[0] == "memory" {
			if fields[3] == "1" {
				return f
			}
			f.State = Lacking
			f.Detail = "the memory controller is disabled: nothing is ever charged"
			f.Hint = "boot with cgroup_enable=memory and without cgroup_disable=memory"
			return f
		}
	}
	f.State = Unknown
	f.Detail = "neither a cgroup mount nor /proc/cgroups shows it"
	return f
}
