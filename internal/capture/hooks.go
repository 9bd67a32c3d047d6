//go:build linux

package capture

import (
	"errors"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// lacksFentry reports whether err means that the kernel has no fentry, or none for some
// function.
func lacksFentry(err error) bool {
	// ENOTSUPP of include/linux/errno.h, which is not part of the uapi.
	const notSupported = unix.Errno(524)
	return errors.Is(err, notSupported) || errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, btf.ErrNotFound)
}

// A hook is an attach point in the kernel.
type hook struct {
	// name is the name of a function, a tracepoint or an iterator. laterName is that of the
	// function in later kernels, if it changed.
	name, laterName string
	// programs are the names of the programs for each way to attach that needs the hook.
	programs map[Attach]string
	attach   func(h hook, a Attach, p *ebpf.Program) (link.Link, error)
	// without describes what a trace lacks without the hook. If it is empty, the hook is
	// required.
	without string
	// feature is set for a function of an optional feature: a kernel without it lacks nothing.
	feature bool
	// needed reports whether options need the hook; nil: always.
	needed func(o *Options) bool
	// netOnly is set for a function that only Options.Net needs; see startAny.
	netOnly bool
	// calls is set for a program that has to see each call of a traced function; see
	// Counts.Missed.
	calls bool
}

// attachFor returns the way to attach the hook.
func (h *hook) attachFor(attach, attachNet Attach) Attach {
	if h.netOnly {
		return attachNet
	}
	return attach
}

func needsNet(o *Options) bool { return o.Net }

// hooks are in the order of attachment: a return before its entry, so that each charge
// whose entry is seen also has its return seen.
var hooks = []hook{
	{
		name:     "out_of_memory",
		programs: map[Attach]string{Kprobe: bpfProgKretprobeOom, Fentry: bpfProgFexitOom},
		attach:   attachReturn,
		without:  "runs of the OOM killer that kill nobody",
	},
	{
		name:     "out_of_memory",
		programs: map[Attach]string{Kprobe: bpfProgKprobeOom, Fentry: bpfProgFentryOom},
		attach:   attachFunction,
		without:  "the cgroup that ran out of memory at an OOM kill",
	},
	{
		name:     "mem_cgroup_oom_synchronize", // of cgroup v1
		programs: map[Attach]string{Kprobe: bpfProgKprobeOomWait, Fentry: bpfProgFentryOomWait},
		attach:   attachFunction,
		without:  "tasks that wait because the OOM killer is disabled",
		feature:  true,
	},
	{
		name:     "memory_max_write",
		programs: map[Attach]string{Kprobe: bpfProgKretprobeLimitWrite, Fentry: bpfProgFexitLimitWrite},
		attach:   attachReturn,
		without:  "whether a lowered limit set off the OOM killer",
	},
	{
		name:     "memory_max_write",
		programs: map[Attach]string{Kprobe: bpfProgKprobeLimitWrite, Fentry: bpfProgFentryLimitWrite},
		attach:   attachFunction,
		without:  "whether a lowered limit set off the OOM killer",
	},
	{
		name: "mem_cgroup_handle_over_high", laterName: "__mem_cgroup_handle_over_high", // 6.18
		programs: map[Attach]string{Kprobe: bpfProgKprobeOverHigh, Fentry: bpfProgFentryOverHigh},
		attach:   attachFunction,
		without:  "sleeps for memory.high",
	},
	{
		name:     "schedule_timeout_killable",
		programs: map[Attach]string{Kprobe: bpfProgKprobeSleep, Fentry: bpfProgFentrySleep},
		attach:   attachFunction,
		without:  "sleeps for memory.high",
	},
	{
		name:     "__oom_kill_process",
		programs: map[Attach]string{Kprobe: bpfProgKprobeOomKill, Fentry: bpfProgFentryOomKill},
		attach:   attachFunction,
		without:  "OOM kills",
	},
	{
		name:     "mm_vmscan_memcg_reclaim_end",
		programs: map[Attach]string{Kprobe: bpfProgReclaimEnd, Fentry: bpfProgReclaimEnd},
		attach:   attachTracepoint,
		without:  "the end of reclaim",
	},
	{
		name:     "try_to_free_mem_cgroup_pages",
		programs: map[Attach]string{Kprobe: bpfProgKprobeReclaimBegin, Fentry: bpfProgFentryReclaimBegin},
		attach:   attachFunction,
		without:  "reclaim",
	},
	{
		name:     "cgroup_release",
		programs: map[Attach]string{Kprobe: bpfProgCgroupRelease, Fentry: bpfProgCgroupRelease},
		attach:   attachTracepoint,
		without:  "the end of cgroups",
		needed:   func(o *Options) bool { return o.Releases },
	},
	{
		name:     "sched_migrate_task",
		programs: map[Attach]string{Kprobe: bpfProgTaskMigrates},
		attach:   attachTracepoint,
		without:  "the return of charges on another CPU than their entry",
	},
	{
		name:     TracedFunction,
		programs: map[Attach]string{Kprobe: bpfProgKretprobeTryCharge},
		attach:   attachReturn,
	},
	{
		name:     TracedFunction,
		programs: map[Attach]string{Kprobe: bpfProgKprobeTryCharge, Fentry: bpfProgFexitTryCharge},
		attach:   attachFunction,
		calls:    true,
	},
	{
		name:     "page_counter_charge",
		programs: map[Attach]string{Kprobe: bpfProgKprobeForcedCharge, Fentry: bpfProgFentryForcedCharge},
		attach:   attachFunction,
		needed:   needsNet,
		netOnly:  true,
		calls:    true,
	},
	{
		name:     "page_counter_uncharge",
		programs: map[Attach]string{Kprobe: bpfProgKprobeUncharge, Fentry: bpfProgFentryUncharge},
		attach:   attachFunction,
		needed:   needsNet,
		netOnly:  true,
		calls:    true,
	},
	// Attach it before the iterator lists the processes, so that no fork is missed.
	{
		name:     "sched_process_fork",
		programs: map[Attach]string{Kprobe: bpfProgProcessFork, Fentry: bpfProgProcessFork},
		attach:   attachTracepoint,
		needed:   func(o *Options) bool { return o.Forks || o.hasTargets() },
	},
	{
		name:     "sched_process_free",
		programs: map[Attach]string{Kprobe: bpfProgProcessFree, Fentry: bpfProgProcessFree},
		attach:   attachTracepoint,
		needed:   (*Options).hasTargets,
	},
	{
		name:     "task",
		programs: map[Attach]string{Kprobe: bpfProgFindProcesses, Fentry: bpfProgFindProcesses},
		attach:   iterate,
		needed:   func(o *Options) bool { return o.Forks || o.hasTargets() },
	},
}

// hasTargets reports whether the processes to trace are in a map. A single pid of the
// initial pid namespace is a constant of the programs instead.
func (o *Options) hasTargets() bool {
	return len(o.PIDs) > 1 || len(o.PIDs) == 1 && (o.Follow || !inInitialPIDNamespace())
}

func inInitialPIDNamespace() bool { return machine{root: "/"}.initialPIDNamespace() }

func attachFunction(h hook, a Attach, p *ebpf.Program) (link.Link, error) {
	if a == Kprobe {
		return link.Kprobe(h.name, p, nil)
	}
	return link.AttachTracing(link.TracingOptions{Program: p})
}

func attachReturn(h hook, a Attach, p *ebpf.Program) (link.Link, error) {
	if a == Kprobe {
		return link.Kretprobe(h.name, p, nil)
	}
	return link.AttachTracing(link.TracingOptions{Program: p})
}

func attachTracepoint(h hook, _ Attach, p *ebpf.Program) (link.Link, error) {
	return link.AttachRawTracepoint(link.RawTracepointOptions{Name: h.name, Program: p})
}

// iterate runs a program for each task, and returns no link.
func iterate(_ hook, _ Attach, p *ebpf.Program) (link.Link, error) {
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return nil, err
}
