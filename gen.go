// Package chargetrace is the root of the module; it holds no code. The command
// is in cmd/chargetrace.
//
//	kernel -> ring buffer -> capture --+                    +-> table
//	                                   +-> stream.Copy -----+-> export
//	.ctrace file ----------> trace ----+                    +-> trace.Writer
//	                                                        +-> summary -> watch, report
//
// BPF programs (bpf/) at the entry and the return of page_counter_try_charge
// write one event for each call into a ring buffer, and others what reclaim and
// the OOM killer do, and what is given back. Package capture loads the programs, drains the buffer and
// decodes what it finds with package event. Package stream moves the events, in
// batches, from that source to the sinks: table prints them, summary adds them
// up, watch shows that while it happens, report draws it and tells it in words, on
// a page for a browser, export writes what other programs read, all with the names
// that package cgroup learns from the events. Package trace is the recording: a sink
// that writes one, and a source that plays it. Data goes one way: every package
// of these knows event; sinks know nothing of each other, but for watch and report of
// summary, nor of capture, and only the command joins them.
//
// Package cause tells from a kernel stack, which capture reads and names, what a
// charge was for, and adds up charges by stack, for all the sinks.
//
// Package symbol names the addresses of processes, and package text writes amounts and
// paths for people.
//
// What is shown is a matter of stream, and a live source does it in the kernel:
// package glob has patterns for names of threads in a form for both. Package help
// makes the man page and the completions of shells from what -h prints.
//
// Package sampler is a source around capture, which adds the usage of cgroups at the beginning and
// the end of a trace, for the balance.
//
// Package launch starts the command of "chargetrace -- command" and waits with its exec until
// the trace has begun.
//
// Package vm boots real kernels in QEMU, for the demonstration and for package guest,
// whose tests run on them.
package chargetrace

// The generated files are committed, so that building needs no clang. The
// version of clang is part of the output, hence pinned.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64,ppc64le,riscv64,s390x -tags linux -output-dir internal/capture -go-package capture -type event_type -type cgroup_verdict -type stack_slots -type event -type level -type reclaim_event -type oom_kill_event -type cgroup_event -type fork_event -type uncharge_event -type stack_event bpf bpf/chargetrace.bpf.c -- -O2 -g -Wall -Werror

// A test compares this with the sources: the object must not be older.
//go:generate sh -c "LC_ALL=C; cat bpf/* | sha256sum > internal/capture/bpf_sources.sha256"
