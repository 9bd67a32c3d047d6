//go:build linux

package symbol

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is the data read of a process.
type process struct {
	// dir is its directory in /proc, opened with O_PATH: it never refers to another
	// process that gets the same pid. It keeps neither the process nor its mounts alive.
	dir        int
	layout     uint32
	used       uint64    // the Resolver's clock at the last use
	mappings   []mapping // by address; shared with other processes of this layout
	missed     backoff
	perf       *perfMap // nil if there is none
	perfMissed backoff
}

// gone is the value of dir for a process that is gone.
const gone = -1

// mapping is executable memory of a process.
type mapping struct {
	start, end, offset uint64 // offset is in the file
	inode              uint64 // 0 if no file is mapped
	path               string // of the file
	name               string // for output
	// image is nil if the file is unread, and for memory of no file except the vDSO.
	image *image
}

// Limits for one process. vm.max_map_count is 65530, and some databases want 262144:
// 25 MiB.
const (
	maxMapsBytes   = 32 << 20
	maxLineBytes   = 32 << 10 // a path of PATH_MAX, each byte as \ooo
	maxMapped      = 1 << 12
	maxStatusBytes = 64 << 10
	// maxLoadBytes limits the new files loaded at once, in bytes; the others are loaded
	// when an address is in them.
	maxLoadBytes = 256 << 20
)

func openProcess(pid uint32) int {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone
	}
	return dir
}

func (p *process) close() {
	if p.dir >= 0 {
		unix.Close(p.dir)
	}
}

// bytes estimates the memory of p. Shared mappings count in each process.
func (p *process) bytes() int {
	n := 0
	for i := range p.mappings {
		n += 128 + len(p.mappings[i].path) + len(p.mappings[i].name)
	}
	return n
}

// backoff decides when a miss is worth reading again: the first one, and then after ever
// more misses. Stacks walked without frame pointers contain many invalid addresses.
type backoff struct{ wait, misses int }

const maxWait = 1 << 10

func (b *backoff) due() bool {
	if b.misses++; b.misses <= b.wait {
		return false
	}
	b.misses = 0
	b.wait = min(2*b.wait+1, maxWait)
	return true
}

// read reads the mappings of a process. If it is gone or executed another program, the old
// mappings stay, its own or those of its layout. Images stay too: an exiting process still
// has mappings whose files can no longer be opened.
func (r *Resolver) read(p *process) {
	f := p.open("maps")
	if f == nil {
		return
	}
	defer f.Close()
	mappings := slices.Collect(executable(f))
	if len(mappings) == 0 || !p.hasLayout() {
		return
	}
	known := p.mappings
	if other := r.byLayout[p.layout]; len(known) == 0 && other != nil {
		known = other.mappings
	}
	r.bytes -= p.bytes()
	p.mappings = mappings
	r.bytes += p.bytes()
	left := int64(maxLoadBytes)
	for i := range mappings {
		m := &mappings[i]
		if m.isVDSO() {
			m.image = r.vDSO()
		}
		if left > 0 {
			left -= r.load(p, m)
		}
		if before := find(known, m.start); m.image == nil && before != nil && before.sameFile(m) {
			m.image = before.image
		}
	}
	r.readPerfMap(p)
}

// open opens a file in the process's directory in /proc, or returns nil.
func (p *process) open(name string) *os.File {
	fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

// hasLayout reports whether the process still runs the program of its layout. It returns
// false without the right to read the process's memory.
func (p *process) hasLayout() bool {
	f := p.open("stat")
	if f == nil {
		return false
	}
	defer f.Close()
	stat, err := io.ReadAll(io.LimitReader(f, maxStatusBytes))
	if err != nil {
		return false
	}
	layout, ok := parseStat(string(stat))
	return ok && layout == p.layout
}

// parseStat parses /proc/PID/stat; see proc_pid_stat(5).
func parseStat(stat string) (layout uint32, ok bool) {
	// The name of the process, in parentheses, can hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const startCode = 26 - 3 // fields starts with the third field
	if len(fields) < startCode+3 {
		return 0, false
	}
	var n [3]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(fields[startCode+i], 10, 64); err != nil {
			return 0, false
		}
	}
	// startstack is 0 if it is hidden.
	return LayoutOf(n[0], n[1], n[2]), n[2] != 0
}

// executable parses /proc/PID/maps, and yields the first maxMapped executable mappings.
func executable(maps io.Reader) iter.Seq[mapping] {
	return func(yield func(mapping) bool) {
		lines := bufio.NewScanner(io.LimitReader(maps, maxMapsBytes))
		lines.Buffer(nil, maxLineBytes)
		var end uint64
		for n := 0; n < maxMapped && lines.Scan(); {
			// A mapping that changes during the read can come twice.
			m, ok := parseMapping(lines.Bytes())
			if !ok || m.start < end {
				continue
			}
			if !yield(m) {
				return
			}
			n++
			end = m.end
		}
	}
}

// parseMapping parses a line of /proc/PID/maps; see proc_pid_maps(5). ok is false if the
// mapping is not executable.
func parseMapping(line []byte) (m mapping, ok bool) {
	fields := bytes.SplitN(line, []byte(" "), 6)
	if len(fields) < 5 || len(fields[1]) != 4 || fields[1][2] != 'x' {
		return mapping{}, false
	}
	from, to, _ := strings.Cut(string(fields[0]), "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	offset, err3 := strconv.ParseUint(string(fields[2]), 16, 64)
	// Ignore the device: btrfs and overlayfs return another one in stat(2).
	inode, err4 := strconv.ParseUint(string(fields[4]), 10, 64)
	if err := cmp.Or(err1, err2, err3, err4); err != nil || start >= end {
		return mapping{}, false
	}
	m = mapping{start: start, end: end}
	name := "anon"
	if len(fields) > 5 {
		name = cmp.Or(strings.ReplaceAll(strings.TrimLeft(string(fields[5]), " "), `\012`, "\n"), name)
	}
	if strings.HasPrefix(name, "/") {
		if inode != 0 {
			m.offset, m.inode, m.path = offset, inode, name
		}
		name = path.Base(strings.TrimSuffix(name, deleted))
	} else if inner, ok := strings.CutPrefix(name, "["); ok {
		name = strings.TrimSuffix(inner, "]")
	}
	m.name = string(appendText(nil, []byte(name)))
	return m, true
}

// deleted is the suffix that the kernel adds to the path of a removed file.
const deleted = " (deleted)"

// find returns the mapping that contains an address, or nil.
func find(mappings []mapping, address uint64) *mapping {
	i, found := slices.BinarySearchFunc(mappings, address, func(m mapping, a uint64) int { return cmp.Compare(m.start, a) })
	if !found {
		i--
	}
	if i < 0 || address >= mappings[i].end {
		return nil
	}
	return &mappings[i]
}

// sameFile reports whether two mappings have the same address, offset, inode and path.
func (m *mapping) sameFile(other *mapping) bool {
	return m.start == other.start && m.offset == other.offset && m.inode == other.inode && m.path == other.path
}

// unread reports whether the mapping's file is still to be read, or to be read again.
func (m *mapping) unread() bool { return m.inode != 0 && (m.image == nil || m.image.evicted) }

// load reads the file of a mapping once. It returns the size of the file if it read it.
func (r *Resolver) load(p *process, m *mapping) int64 {
	if !m.unread() {
		return 0
	}
	fd, stat, err := p.openMapped(m)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	key := imageKey{stat.Dev, stat.Ino, stat.Size, stat.Ctim}
	r.clock++
	if i := r.images[key]; i != nil {
		i.used = r.clock
		m.image = i
		return 0
	}
	f, err := reopen(fd)
	if err != nil {
		return 0
	}
	defer f.Close()
	i, symtab := readImage(f)
	if !symtab {
		i.readDebug(debugDir)
	}
	i.used = r.clock
	r.images[key] = i
	m.image = i
	r.evict()
	return stat.Size
}

// evict drops the functions of the least recently used images above the limits. The files
// are read again when an address is in one.
func (r *Resolver) evict() {
	bytes := 0
	for _, i := range r.images {
		bytes += i.functions.bytes()
	}
	for len(r.images) > maxImages || bytes > maxImageBytes {
		var oldest imageKey
		least := uint64(math.MaxUint64)
		for key, i := range r.images {
			if i.used < least {
				oldest, least = key, i.used
			}
		}
		bytes -= r.images[oldest].functions.bytes()
		r.images[oldest].functions, r.images[oldest].evicted = functions{}, true
		delete(r.images, oldest)
	}
}

// openMapped opens the file of a mapping with O_PATH, which has no side effects. It uses
// map_files, which is exact and needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, or else the
// path, if that still has the same inode.
func (p *process) openMapped(m *mapping) (fd int, stat unix.Stat_t, err error) {
	fd, err = unix.Openat(p.dir, fmt.Sprintf("map_files/%x-%x", m.start, m.end), unix.O_PATH|unix.O_CLOEXEC, 0)
	byPath := err != nil
	if byPath {
		fd, err = p.openInRoot(m.path, 0)
	}
	if err != nil {
		return 0, stat, err
	}
	if err = unix.Fstat(fd, &stat); err == nil && (stat.Mode&unix.S_IFMT != unix.S_IFREG || byPath && stat.Ino != m.inode) {
		err = unix.ENOENT
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, stat, err
}

// openInRoot opens a path with O_PATH as the process sees it. Symbolic links cannot lead
// out of its root.
func (p *process) openInRoot(path string, flags uint64) (fd int, err error) {
	root, err := unix.Openat(p.dir, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// reopen opens an O_PATH descriptor of a regular file for reading. O_NONBLOCK avoids
// waiting until the holder of a lease (fcntl(2)) gives it up.
func reopen(fd int) (*os.File, error) {
	f, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(f), ""), nil
}
