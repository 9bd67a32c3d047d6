//go:build linux

package symbol

import (
	"bytes"
	"io"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// perfMap are the functions that a JIT compiler (Java, Node, .NET) lists for its process
// in /tmp/perf-PID.map: lines of start, size and name. See
// tools/perf/Documentation/jit-interface.txt in Linux.
type perfMap struct {
	dev, ino uint64
	// read counts the bytes read so far: compilers append to the file.
	read      int64
	functions functions
}

// maxPerfBytes limits the bytes read of one perf map, and the bytes kept of all.
const maxPerfBytes = 64 << 20

// compiled returns the function of the perf map that contains an address.
func (r *Resolver) compiled(p *process, address uint64) (name []byte, start uint64, ok bool) {
	name, start, ok = p.perf.find(address)
	if !ok && p.perfMissed.due() {
		r.readPerfMap(p)
		if name, start, ok = p.perf.find(address); ok {
			// Each read sorts the map again: wait longer for a larger one, so that the
			// average cost of a miss is the same.
			p.perfMissed = backoff{wait: len(p.perf.functions.byStart) >> 10}
		}
	}
	return name, start, ok
}

func (m *perfMap) find(address uint64) (name []byte, start uint64, ok bool) {
	if m == nil {
		return nil, 0, false
	}
	return m.functions.find(address)
}

// trusted reports whether a perf map's owner may describe a process of a user: anybody can
// write to /tmp.
func trusted(owner, user uint32) bool { return owner == 0 || owner == user }

// readPerfMap reads the lines appended to the perf map of a process.
func (r *Resolver) readPerfMap(p *process) {
	pid, uid, ok := p.identity()
	if !ok {
		return
	}
	fd, err := p.openInRoot("tmp/perf-"+pid+".map", unix.O_NOFOLLOW)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG || !trusted(stat.Uid, uid) {
		return
	}
	if p.perf == nil || p.perf.dev != stat.Dev || p.perf.ino != stat.Ino || p.perf.read > stat.Size {
		p.perf = &perfMap{dev: stat.Dev, ino: stat.Ino}
	}
	added := make([]byte, min(stat.Size, maxPerfBytes)-p.perf.read)
	if len(added) == 0 {
		return
	}
	f, err := reopen(fd)
	if err != nil {
		return
	}
	defer f.Close()
	n, _ := f.ReadAt(added, p.perf.read)
	p.perf.add(added[:n])

	kept := 0
	for _, other := range r.processes {
		if other.perf != nil {
			kept += other.perf.functions.bytes()
		}
	}
	for _, other := range r.processes {
		if kept > maxPerfBytes && other != p {
			other.perf = nil
		}
	}
}

// identity returns the process's pid in its own pid namespace, which names its perf map,
// and its effective user.
func (p *process) identity() (pid string, uid uint32, ok bool) {
	f := p.open("status")
	if f == nil {
		return "", 0, false
	}
	defer f.Close()
	status, err := io.ReadAll(io.LimitReader(f, maxStatusBytes))
	if err != nil {
		return "", 0, false
	}
	return parseStatus(string(status))
}

// parseStatus parses /proc/PID/status; see proc_pid_status(5).
func parseStatus(status string) (pid string, uid uint32, ok bool) {
	for line := range strings.Lines(status) {
		switch fields := strings.Fields(line); {
		case len(fields) > 1 && fields[0] == "NSpid:":
			pid = fields[len(fields)-1]
		case len(fields) == 5 && fields[0] == "Uid:":
			n, err := strconv.ParseUint(fields[2], 10, 32)
			uid, ok = uint32(n), err == nil
		}
	}
	return pid, uid, ok && pid != ""
}

// add parses text appended to the file, up to its last newline. A function replaces
// earlier ones at the same address: compilers reuse memory.
func (m *perfMap) add(text []byte) {
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	m.read += int64(len(text))
	names := m.functions.names
	var symbols []symbol
	for _, f := range m.functions.byStart {
		symbols = append(symbols, symbol{f.start, f.size, f.name, math.MaxUint32})
	}
	for line := range bytes.Lines(text) {
		start, size, name, ok := parsePerfLine(line)
		if !ok || len(symbols) == maxSymbols {
			continue
		}
		symbols = append(symbols, symbol{start, size, uint32(len(names)), math.MaxUint32 - uint32(len(symbols)) - 1})
		names = append(append(names, name...), 0)
	}
	m.functions = newFunctions(symbols, names, nil)
}

func parsePerfLine(line []byte) (start uint64, size uint32, name []byte, ok bool) {
	fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 3)
	if len(fields) < 3 || len(fields[2]) == 0 || bytes.IndexByte(fields[2], 0) >= 0 {
		return 0, 0, nil, false
	}
	start, err := strconv.ParseUint(string(bytes.TrimPrefix(fields[0], []byte("0x"))), 16, 64)
	if err != nil {
		return 0, 0, nil, false
	}
	n, err := strconv.ParseUint(string(bytes.TrimPrefix(fields[1], []byte("0x"))), 16, 64)
	if err != nil || n == 0 || n > maxFunction {
		return 0, 0, nil, false
	}
	return start, uint32(n), fields[2], true
}
