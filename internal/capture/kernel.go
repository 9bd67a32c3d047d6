//go:build linux

package capture

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// kernel is the reader's interface to the loaded programs, except for the ring buffer: a
// [*programs], or a fake in tests.
type kernel interface {
	readCounters(cpu int, n *bpfCpuState) error
	readUnfollowed() (uint64, error)
	// missed counts the calls of the function that did not reach the programs.
	missed() uint64
	// setReaderIdle asks the programs to wake the reader at the next event.
	setReaderIdle() error
	// detach detaches the programs, and waits until no CPU runs them.
	detach() error
}

// programs are the loaded and attached programs and their maps.
type programs struct {
	loaded []program
	links  []attachment // in order of attachment
	ring   *ringBuffer

	counters   *ebpf.Map
	targets    *ebpf.Map
	readerIdle *ebpf.Variable
	unfollowed *ebpf.Variable

	kprobeMisses uint64 // of detached kprobes
}

// program and attachment belong to a hook, and copy its field calls.
type program struct {
	*ebpf.Program
	calls bool
}

type attachment struct {
	link.Link
	calls bool
}

// newPrograms takes the maps and variables that the reader needs from a collection. The
// programs keep the other maps alive.
func newPrograms(coll *ebpf.Collection) (*programs, error) {
	events := coll.Maps[bpfMapEvents]
	ring, err := newRingBuffer(events.FD(), int(events.MaxEntries()))
	if err != nil {
		return nil, err
	}
	return &programs{
		ring:       ring,
		counters:   coll.DetachMap(bpfMapCpuStates),
		targets:    coll.DetachMap(bpfMapTargets),
		readerIdle: coll.Variables[bpfVarReaderIdle],
		unfollowed: coll.Variables[bpfVarUnfollowed],
	}, nil
}

// attach attaches a collection's programs to their hooks, in order. It returns what the
// trace lacks because this kernel lacks a hook.
func (p *programs) attach(coll *ebpf.Collection, hooks []hook, attach, attachNet Attach) (lacking []string, err error) {
	for _, h := range hooks {
		how := h.attachFor(attach, attachNet)
		prog := coll.DetachProgram(h.programs[how])
		if prog == nil {
			continue
		}
		p.loaded = append(p.loaded, program{prog, h.calls})
		l, err := h.attach(h, how, prog)
		if errors.Is(err, os.ErrNotExist) && h.laterName != "" {
			h.name = h.laterName
			l, err = h.attach(h, how, prog)
		}
		switch {
		case err == nil && l != nil:
			p.links = append(p.links, attachment{l, h.calls})
		case err == nil: // an iterator that has run
		case h.without == "":
			return nil, fmt.Errorf("attach a %s to %s: %w", how, h.name, err)
		case errors.Is(err, os.ErrNotExist): // inlined in this kernel
			lacking = h.addLacking(lacking)
		default:
			return nil, fmt.Errorf("attach to %s: %w", h.name, err)
		}
	}
	return lacking, nil
}

// detach first closes the links of entries, so that no call is in flight when the links of
// returns are closed.
func (p *programs) detach() error {
	var begins, rest []attachment
	for _, l := range p.links {
		if l.calls {
			begins = append(begins, l)
		} else {
			rest = append(rest, l)
		}
	}
	p.links = nil
	return errors.Join(p.close(begins), p.close(rest))
}

// close closes links concurrently, since the kernel waits for each, and waits until none
// of their programs runs.
func (p *programs) close(links []attachment) error {
	errs := make([]error, len(links))
	var closing sync.WaitGroup
	for i, l := range links {
		if l.calls {
			p.kprobeMisses += kprobeMisses(l.Link)
		}
		closing.Go(func() { errs[i] = l.Close() })
	}
	closing.Wait()
	waitForPrograms()
	return errors.Join(errs...)
}

// waitForPrograms waits until every CPU has left the programs. They run inside RCU
// read-side critical sections, and membarrier(2) waits for all of those
// (kernel/sched/membarrier.c). It does not wait on one CPU, where only a preempted program
// can be in flight, nor with nohz_full. When the last program of a function is detached,
// the kernel itself waits.
func waitForPrograms() {
	const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
}

// kprobeMisses returns the number of hits of a kprobe while its CPU handled another kprobe.
// Kernels before 6.7 do not report it.
func kprobeMisses(l link.Link) uint64 {
	info, err := l.Info()
	if err != nil || info.PerfEvent() == nil || info.PerfEvent().Kprobe() == nil {
		return 0
	}
	return info.PerfEvent().Kprobe().Missed
}

func (p *programs) missed() uint64 {
	n := p.kprobeMisses
	for _, prog := range p.loaded {
		// Linux counts these since 5.12; not every kernel reports them.
		if stats, err := prog.Stats(); err == nil && prog.calls {
			n += stats.RecursionMisses
		}
	}
	return n
}

func (p *programs) readCounters(cpu int, n *bpfCpuState) error {
	return p.counters.Lookup(uint32(cpu), n)
}

func (p *programs) readUnfollowed() (n uint64, err error) {
	err = p.unfollowed.Get(&n)
	return n, err
}

func (p *programs) setReaderIdle() error { return p.readerIdle.Set(true) }

// free closes the ring buffer, the maps and the programs.
func (p *programs) free() error {
	errs := []error{p.ring.close()}
	for _, m := range []*ebpf.Map{p.counters, p.targets} {
		errs = append(errs, m.Close())
	}
	for _, prog := range p.loaded {
		errs = append(errs, prog.Close())
	}
	return errors.Join(errs...)
}
