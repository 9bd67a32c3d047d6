// Package symbol names addresses of processes: which function of which file they
// are in. It reads what a process has mapped and the files themselves while the
// process is there, and keeps that, since it is gone later.
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
	"encoding/hex"
	"strconv"
)

// A Resolver names addresses of processes, which it knows by their numbers in the
// pid namespace of /proc. It is for one goroutine.
type Resolver struct {
	processes map[uint32]*process
	bytes     int // of all processes
	images    map[imageKey]*image
	vdso      *image // nil until it is needed
	// clock counts the uses of images.
	clock uint64
}

// What is kept at most. A process takes a file descriptor, of which there may be
// 4096. A node with 200 containers has about 500 programs and libraries, most with
// 100 KiB of names and a few with 10 MiB.
const (
	maxProcesses    = 1 << 11
	maxProcessBytes = 32 << 20
	maxImages       = 1 << 12
	maxImageBytes   = 128 << 20
)

// NewResolver returns a Resolver that knows no process.
func NewResolver() *Resolver {
	return &Resolver{processes: make(map[uint32]*process), images: make(map[imageKey]*image)}
}

// Look reads what a process has mapped now, and the files, if it is not known yet.
func (r *Resolver) Look(pid uint32) { r.process(pid) }

func (r *Resolver) process(pid uint32) *process {
	p := r.processes[pid]
	if p == nil {
		p = &process{dir: openProcess(pid)}
		r.add(pid, p)
		r.read(p)
	} else if p.dir == unopened {
		p.dir = openProcess(pid)
	}
	return p
}

// add forgets all processes where there are too many: those that still run are
// read again.
func (r *Resolver) add(pid uint32, p *process) {
	if len(r.processes) >= maxProcesses || r.bytes > maxProcessBytes {
		for other := range r.processes {
			r.forget(other)
		}
	}
	r.processes[pid] = p
	r.bytes += p.bytes()
}

func (r *Resolver) forget(pid uint32) {
	if p := r.processes[pid]; p != nil {
		r.bytes -= p.bytes()
		p.close()
		delete(r.processes, pid)
	}
}

// Forked says that a process has what its parent has mapped. What it maps later is
// read when an address is not in that.
func (r *Resolver) Forked(parent, child uint32) {
	r.forget(child) // another of its number
	if p := r.processes[parent]; p != nil {
		r.add(child, &process{dir: unopened, mappings: p.mappings, perf: p.perf})
	}
}

// Executed says that what a process had mapped is gone.
func (r *Resolver) Executed(pid uint32) { r.forget(pid) }

// Exited says that a process is gone, and may be forgotten.
func (r *Resolver) Exited(pid uint32) { r.forget(pid) }

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
func (r *Resolver) AppendFrame(dst []byte, pid uint32, address uint64) []byte {
	p := r.process(pid)
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
