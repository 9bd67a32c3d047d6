//go:build linux

// Package symbol resolves addresses of processes and of the kernel to functions. It reads
// what a process has mapped and the files themselves while the process is there, and
// keeps that, since it is gone later.
//
// All that it reads is in the hands of the processes, and is checked: files are
// opened so that nothing happens to them, what is read of each is bounded, and a
// name comes out as it may be printed. A process can lie about its own functions,
// and about no other's. A file system that does not answer holds the reader up.
//
// It reads no jitdump files, no compressed symbols (.gnu_debugdata), and, where it has
// not the capability for map_files, none of a process that has called chroot.
//
// It must not know where addresses come from, nor what becomes of their names.
package symbol

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
)

// A Process is a process as long as it runs one program.
type Process struct {
	// PID is its number in the pid namespace of /proc.
	PID uint32
	// Layout tells the program in its memory from another; see [LayoutOf].
	Layout uint32
}

// LayoutOf returns what tells one program in the memory of a process from another,
// by where it begins and ends, and where its stack does, which is placed at random:
// startcode, endcode and startstack of proc_pid_stat(5). What is forked has the same
// until it executes another program. It is not 0.
func LayoutOf(startCode, endCode, startStack uint64) uint32 {
	n := (startCode + 3*endCode + 5*startStack) * 0x9e3779b97f4a7c15 >> 32
	return uint32(max(n, 1))
}

// A Resolver names addresses of processes. It is for one goroutine.
type Resolver struct {
	processes map[Process]*process
	// byLayout has the process of each layout that was read last.
	byLayout map[uint32]*process
	bytes    int // of all processes
	unknown  uint64
	images   map[imageKey]*image
	vdso     *image // nil until it is needed
	// clock counts the uses of processes and images.
	clock uint64
}

// What is kept at most. A process takes a file descriptor, of which there may be
// 1024. A node with 200 containers has about 500 programs and libraries, most with
// 100 KiB of names and a few with 10 MiB.
const (
	maxProcesses    = 1 << 9
	maxProcessBytes = 32 << 20
	maxImages       = 1 << 12
	maxImageBytes   = 128 << 20
)

// NewResolver returns a Resolver that knows no process.
func NewResolver() *Resolver {
	return &Resolver{
		processes: make(map[Process]*process), byLayout: make(map[uint32]*process), images: make(map[imageKey]*image),
	}
}

// process returns what is known of a process, which is read when it is first met. Where
// it is gone by then, what another has with the same layout stands for that: its
// parent, say.
func (r *Resolver) process(of Process) *process {
	r.clock++
	p := r.processes[of]
	if p != nil {
		p.used = r.clock
		return p
	}
	p = &process{layout: of.Layout, dir: openProcess(of.PID), used: r.clock}
	r.add(of, p)
	if r.read(p); len(p.mappings) > 0 {
		r.byLayout[of.Layout] = p
		return p
	}
	p.close()
	p.dir = gone
	// Its perf map is not the other's, which may have compiled something else.
	if other := r.byLayout[of.Layout]; other != nil {
		p.mappings = other.mappings
		r.bytes += p.bytes()
	} else {
		r.unknown++
	}
	return p
}

// Unknown returns how many processes could not be read: they were gone when they were
// first met, or it takes CAP_SYS_PTRACE.
func (r *Resolver) Unknown() uint64 { return r.unknown }

// add forgets half of the processes where there are too many, those whose last use is
// the longest ago: what still runs is read again.
func (r *Resolver) add(of Process, p *process) {
	if len(r.processes) >= maxProcesses || r.bytes > maxProcessBytes {
		oldest := slices.SortedFunc(maps.Keys(r.processes), func(a, b Process) int {
			return cmp.Compare(r.processes[a].used, r.processes[b].used)
		})
		for _, key := range oldest[:(len(oldest)+1)/2] {
			r.forget(key)
		}
	}
	r.processes[of] = p
	r.bytes += p.bytes()
}

func (r *Resolver) forget(key Process) {
	p := r.processes[key]
	if r.byLayout[key.Layout] == p {
		delete(r.byLayout, key.Layout)
	}
	r.bytes -= p.bytes()
	p.close()
	delete(r.processes, key)
}

// AppendFrame appends what an address of a process is in, as one of
//
//	main.fill [app]+0x8f      a function, the file, and how far into the function
//	[app 8f3a5c]+0x45d20f     no function is known there: the file, its build id, and
//	                          the address as addr2line -e FILE takes it
//	[app]+0x45d20f            likewise of a file without a build id
//	[app unread]+0x5d20f      a file that could not be read: the offset in it
//	run [perf map]+0x3        a function that its compiler tells of in a perf map
//	[anon]+0x1c               executable memory of no file, from its start on
//	0x7f0012345678            the process is not known, or has nothing there
//
// The vDSO is [vdso]. Names hold neither ';' nor what [event.AppendPrintable] leaves
// out, and have at most 256 bytes; what is longer ends in "…". Where a call is the
// last of a function, the address at which it returns is in none or in the next: the
// one before it is in the call.
func (r *Resolver) AppendFrame(dst []byte, of Process, address uint64) []byte {
	p := r.process(of)
	m := find(p.mappings, address)
	if m == nil && p.missed.due() {
		r.read(p)
		if m = find(p.mappings, address); m != nil {
			p.missed = backoff{}
		}
	}
	if m == nil {
		return appendHex(dst, "0x", address)
	}
	offset := address - m.start + m.offset
	r.load(p, m)
	if m.image != nil {
		r.clock++
		m.image.used = r.clock
		if virtual, ok := m.image.virtual(offset); ok {
			if name, start, ok := m.image.functions.find(virtual); ok {
				return appendFunction(dst, name, m.name, virtual-start)
			}
			dst = append(append(dst, '['), m.name...)
			if len(m.image.buildID) > 0 {
				dst = hex.AppendEncode(append(dst, ' '), m.image.buildID)
			}
			return appendHex(dst, "]+0x", virtual)
		}
	}
	if m.unread() {
		dst = append(append(dst, '['), m.name...)
		return appendHex(dst, " unread]+0x", offset)
	}
	if name, start, ok := r.compiled(p, address); ok {
		return appendFunction(dst, name, "perf map", address-start)
	}
	dst = append(append(dst, '['), m.name...)
	return appendHex(dst, "]+0x", offset)
}

func appendFunction(dst, name []byte, file string, offset uint64) []byte {
	dst = append(appendName(dst, name), " ["...)
	return appendHex(append(dst, file...), "]+0x", offset)
}

func appendHex(dst []byte, before string, n uint64) []byte {
	return strconv.AppendUint(append(dst, before...), n, 16)
}
