// Package chargetrace is the root of the module; it holds no code. The command
// is in cmd/chargetrace.
//
//	kernel -> ring buffer -> capture -> sampler --+                                +-> table
//	                                              +-> stream.Copy -> world,        +-> export
//	.ctrace file ------------> trace -------------+    (Filter)      verdict ------+-> trace.Writer
//	                                                                 (names, ooms) +-> summary, report
//	                                                                               +-> watch
//
// Right of capture and trace, batches of events pass from a [stream.Source] to
// [stream.Sink]s. A Source also has an Info,
// which says what made the trace, and Counts, which say what became of the charges. The
// command puts the Info into the World, and Copy passes the Counts to Sink.Close.
//
// The command runs one session for a live trace and for a replay: they differ in its source
// alone. Sinks do not know each other, except that watch and report use summary, and none
// knows capture. Most packages import event; imports_test.go in cmd/chargetrace lists all
// allowed imports.
//
//   - bpf/: the programs. They write events to the ring buffer: for each call of
//     page_counter_try_charge, and for reclaim, the OOM killer, sleeps for memory.high, forks,
//     uncharges, cgroup names and stacks.
//   - cmd/chargetrace: flags, the session, and errors with hints.
//   - event: what an event is, and its layout in the ring buffer.
//   - capture: loads and attaches the programs, reads the ring buffer, counts losses, stops.
//   - sampler: adds what a cgroup holds after the OOM killer ran there, and with -net the
//     usage of cgroups at the beginning and the end of a trace.
//   - trace: the recording; its Writer is a Sink, its Reader a Source.
//   - stream: Info, Counts, Source, Sink, Filter, Copy.
//   - world: the names, stacks, usages and balances that the trace has told so far, for all
//     sinks that need them.
//   - verdict: which limits were hit, what ran out of memory, why, and who was killed, for all
//     sinks, in one wording.
//   - table, export, report, watch: the outputs. A new one is a Sink, with an entry in the
//     table of formats in cmd/chargetrace/output.go.
//   - summary: the sums at the end of a trace.
//   - cgroup: names of cgroups and containers; the cgroups of this machine.
//   - cause: what a charge was for, from its kernel stack.
//   - symbol: functions of addresses, in the kernel and in processes.
//   - glob: patterns for thread names, which Go and BPF match alike.
//   - text, help: sizes and paths for people; the man page.
//   - launch: runs the command of "chargetrace -- command".
//   - vm, guest: real kernels in QEMU, for the demonstration and the tests.
package chargetrace

// The generated files are committed, so that building needs no clang. The
// version of clang is part of the output, hence pinned.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64,ppc64le,riscv64,s390x -tags linux -output-dir internal/capture -go-package capture -type event_type -type cgroup_verdict -type stack_slots -type event -type level -type reclaim_event -type oom_kill_event -type oom_event -type throttle_event -type cgroup_event -type fork_event -type uncharge_event -type stack_event bpf bpf/chargetrace.bpf.c -- -O2 -g -Wall -Werror

// A test compares this hash with bpf/, so that a stale object is noticed.
//go:generate sh -c "LC_ALL=C; cat bpf/* | sha256sum > internal/capture/bpf_sources.sha256"
