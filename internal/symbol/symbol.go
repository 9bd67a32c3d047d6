//go:build linux

// Package symbol resolves addresses of processes and of the kernel to functions. It reads
// and keeps a process's mappings and their files while the process runs: they are gone
// later.
//
// Processes control everything it reads. Opening a file has no side effects, the bytes read
// of each are bounded, and names are made printable. A process can lie about its own
// functions, but not about those of others. A file system that hangs blocks the reader.
//
// It reads no jitdump files and no compressed symbols (.gnu_debugdata). Without the
// capability for map_files it reads no files of a process that called chroot.
//
// It must not know where addresses come from or how names are used.
package symbol

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
)

// A Process is a process while it runs one program.
type Process struct {
	// PID is its pid in the pid namespace of /proc.
	PID uint32
	// Layout identifies the program in its memory; see [LayoutOf].
	Layout uint32
}

// LayoutOf hashes the addresses that identify a program in memory: startcode, endcode and
// the randomized startstack of proc_pid_stat(5). A forked process has the same layout until
// it executes another program. The layout is never 0.
func LayoutOf(startCode, endCode, startStack uint64) uint32 {
	n := (startCode + 3*endCode + 5*startStack) * 0x9e3779b97f4a7c15 >> 32
	return uint32(max(n, 1))
}

// A Resolver resolves addresses of processes to functions. It is for one goroutine.
type Resolver struct {
	processes map[Process]*process
	// byLayout is the last process read of each layout.
	byLayout map[uint32]*process
	bytes    int // of all processes
	unknown  uint64
	images   map[imageKey]*image
	vdso     *image // nil until needed
	// clock counts the uses of processes and images.
	clock uint64
}

// Limits of a Resolver. A process takes a file descriptor; 1024 is a common limit of those.
// A node with 200 containers has about 500 programs and libraries, most with 100 KiB of
// names and a few with 10 MiB.
const (
	maxProcesses    = 1 << 9
	maxProcessBytes = 32 << 20
	maxImages       = 1 << 12
	maxImageBytes   = 128 << 20
)

// NewResolver returns a Resolver without processes.
func NewResolver() *Resolver {
	return &Resolver{
		processes: make(map[Process]*process), byLayout: make(map[uint32]*process), images: make(map[imageKey]*image),
	}
}

// process returns a process, and reads it on its first use. If it is gone by then, it gets
// the mappings of another with the same layout, such as its parent.
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
	// The perf map is not shared: the other may have compiled other functions.
	if other := r.byLayout[of.Layout]; other != nil {
		p.mappings = other.mappings
		r.bytes += p.bytes()
	} else {
		r.unknown++
	}
	return p
}

// Unknown counts the processes that could not be read: they were gone at their first use,
// or CAP_SYS_PTRACE is missing.
func (r *Resolver) Unknown() uint64 { return r.unknown }

// add adds a process. Above the limits, it first drops the least recently used half of the
// processes; those that still run are read again.
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

// AppendFrame appends the location of an address of a process, as one of
//
//	main.fill [app]+0x8f      a function, its file, and the offset in the function
//	[app 8f3a5c]+0x45d20f     no function found: the file, its build id, and the
//	                          address for addr2line -e FILE
//	[app]+0x45d20f            the same for a file without a build id
//	[app unread]+0x5d20f      a file that could not be read, and the offset in it
//	run [perf map]+0x3        a function of a JIT compiler's perf map
//	[anon]+0x1c               executable memory of no file, and the offset in it
//	0x7f0012345678            the process is unknown, or has no mapping there
//
// The vDSO is [vdso]. Names are printable as by [event.AppendPrintable], contain no ';',
// and have at most 256 bytes; longer ones end in "…". The return address of a function's
// last call may lie in the next function: pass the address before it.
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
