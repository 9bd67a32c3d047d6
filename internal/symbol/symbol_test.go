//go:build linux

package symbol

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// elfFile is an ELF file with a page of code, at textOffset in the file and at address
// textStart.
type elfFile struct {
	buildID        []byte
	symtab, dynsym []elfSymbol
	goFunctions    []elfSymbol
}

type elfSymbol struct {
	name        string
	start, size uint64
	bind        elf.SymBind
	kind        elf.SymType
}

const (
	textOffset = 0x1000
	textStart  = 0x402000
	textSize   = 0x1000
)

func global(name string, start, size uint64) elfSymbol {
	return elfSymbol{name, textStart + start, size, elf.STB_GLOBAL, elf.STT_FUNC}
}

func (e elfFile) bytes() []byte {
	put := func(dst []byte, v any) []byte {
		dst, err := binary.Append(dst, binary.LittleEndian, v)
		if err != nil {
			panic(err)
		}
		return dst
	}
	image := make([]byte, textOffset+textSize)

	var note []byte
	if e.buildID != nil {
		note = put(note, []uint32{4, uint32(len(e.buildID)), 3})
		note = append(append(note, "GNU\x00"...), e.buildID...)
	}
	const noteOffset = 0x200
	copy(image[noteOffset:], note)
	programs := put(nil, []elf.Prog64{
		// Data, overlapping the same page of the file, as linkers lay it out.
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Off: 0, Vaddr: textStart - 0x2000, Filesz: textOffset + 0x800, Memsz: textOffset + 0x800},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: textOffset, Vaddr: textStart, Filesz: textSize, Memsz: textSize, Align: 4096},
		{Type: uint32(elf.PT_NOTE), Off: noteOffset, Filesz: uint64(len(note)), Align: 4},
	})
	copy(image[64:], programs)

	sections := []elf.Section64{{}, {Name: 1, Type: uint32(elf.SHT_PROGBITS), Addr: textStart, Off: textOffset, Size: textSize}}
	add := func(kind elf.SectionType, data []byte) {
		sections = append(sections, elf.Section64{Type: uint32(kind), Off: uint64(len(image)), Size: uint64(len(data)), Link: uint32(len(sections) + 1)})
		image = append(image, data...)
	}
	addSymbols := func(kind elf.SectionType, symbols []elfSymbol) {
		if symbols == nil {
			return
		}
		table, names := put(nil, elf.Sym64{}), []byte{0}
		for _, s := range symbols {
			table = put(table, elf.Sym64{Name: uint32(len(names)), Info: elf.ST_INFO(s.bind, s.kind), Shndx: 1, Value: s.start, Size: s.size})
			names = append(append(names, s.name...), 0)
		}
		add(kind, table)
		add(elf.SHT_STRTAB, names)
	}
	addSymbols(elf.SHT_SYMTAB, e.symtab)
	addSymbols(elf.SHT_DYNSYM, e.dynsym)
	if e.goFunctions != nil {
		add(elf.SHT_PROGBITS, goTable(e.goFunctions))
		sections[len(sections)-1].Name = 7
	}
	add(elf.SHT_STRTAB, []byte("\x00.text\x00.gopclntab\x00"))

	header := elf.Header64{
		Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Shoff: uint64(len(image)), Ehsize: 64,
		Phentsize: 56, Phnum: 3, Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	copy(image, put(nil, header))
	return put(image, sections)
}

// goTable returns the .gopclntab of Go 1.26 for sorted functions.
func goTable(functions []elfSymbol) []byte {
	const header = 8 + 8*8
	var names, entries, infos []byte
	for _, f := range functions {
		entries = binary.LittleEndian.AppendUint32(entries, uint32(f.start))
		entries = binary.LittleEndian.AppendUint32(entries, uint32(8*len(functions)+4+len(infos)))
		infos = binary.LittleEndian.AppendUint32(infos, uint32(f.start))
		infos = binary.LittleEndian.AppendUint32(infos, uint32(len(names)))
		names = append(append(names, f.name...), 0)
	}
	last := functions[len(functions)-1]
	entries = binary.LittleEndian.AppendUint32(entries, uint32(last.start+last.size))

	table := []byte{0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8}
	end := uint64(header + len(names))
	for _, field := range []uint64{uint64(len(functions)), 0, 0, header, end, end, end, end} {
		table = binary.LittleEndian.AppendUint64(table, field)
	}
	return append(append(append(table, names...), entries...), infos...)
}

// seven is the Process of fake.
var seven = Process{7, LayoutOf(1, 2, 3)}

// own returns this process.
func own(tb testing.TB) Process { return running(tb, os.Getpid()) }

// running returns a process that runs.
func running(tb testing.TB, pid int) Process {
	tb.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	layout, ok := parseStat(string(stat))
	if !ok {
		tb.Fatalf("%s", stat)
	}
	return Process{uint32(pid), layout}
}

// fake is process 7, whose directory in /proc is a temporary one. The test fills its root.
type fake struct {
	*Resolver
	t   *testing.T
	dir string
}

func newFake(t *testing.T) fake {
	f := fake{NewResolver(), t, t.TempDir()}
	for _, dir := range []string{"root/tmp", "root/lib", "map_files"} {
		if err := os.MkdirAll(filepath.Join(f.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f.write("status", fmt.Sprintf("Name:\tx\nUid:\t0\t%d\t0\t0\nNSpid:\t7\t3\n", os.Geteuid()))
	f.write("stat", "7 (x) S"+strings.Repeat(" 0", 22)+" 1 2 3 0 0\n")
	return f
}

func (f fake) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// inode returns the inode of a file in the root.
func (f fake) inode(name string) uint64 {
	f.t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(filepath.Join(f.dir, "root", name), &stat); err != nil {
		f.t.Fatal(err)
	}
	return stat.Ino
}

// start makes the Resolver read the process.
func (f fake) start() {
	f.t.Helper()
	dir, err := unix.Open(f.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	p := &process{dir: dir, layout: seven.Layout}
	f.add(seven, p)
	f.read(p)
	f.byLayout[p.layout] = p
	f.t.Cleanup(p.close)
}

func (f fake) want(address uint64, want string) {
	f.t.Helper()
	if got := string(f.AppendFrame(nil, seven, address)); got != want {
		f.t.Errorf("%#x is %s, want %s", address, got, want)
	}
}

// withFile returns a process that has a file mapped at 0x10000.
func withFile(t *testing.T, content []byte) fake {
	f := newFake(t)
	f.write("root/lib/libx.so", string(content))
	f.mapFile("/lib/libx.so")
	f.start()
	return f
}

func (f fake) mapFile(path string) {
	f.t.Helper()
	f.write("maps", fmt.Sprintf("10000-11000 r-xp %08x fd:01 %d    %s\n", textOffset, f.inode(path), path))
}

func TestFunctions(t *testing.T) {
	local := func(s elfSymbol) elfSymbol { s.bind = elf.STB_LOCAL; return s }
	file := elfFile{symtab: []elfSymbol{
		{"object", textStart, 0x1000, elf.STB_GLOBAL, elf.STT_OBJECT},
		{"elsewhere", 0x1234, 0x10, elf.STB_GLOBAL, elf.STT_FUNC},
		local(global("alias", 0x100, 0x80)),
		global("__libc_malloc", 0x100, 0x80),
		global("malloc", 0x100, 0x80),
		global("aaaalloc", 0x100, 0),
		global("inner", 0x120, 0x10),
		global("label", 0x140, 0),
		{"ifunc", textStart + 0x200, 0x10, elf.STB_GLOBAL, elf.STT_GNU_IFUNC},
		global("assembly", 0x300, 0),
		global("next", 0x380, 0x10),
		global("_ZNSt6vectorIiSaIiEE9push_backEOi", 0x400, 0x10),
		global("_ZN4core3fmt5write17h0123456789abcdefE", 0x410, 0x10),
		global("_RNvCs1234_7mycrate3foo", 0x420, 0x10),
		global("_Znot", 0x430, 0x10),
		global("semi;colon\n\x1b[31m\xff", 0x440, 0x10),
		global(strings.Repeat("é", 200), 0x450, 0x10),
		global("_ZN1AI"+strings.Repeat("1bI", 100)+"i"+strings.Repeat("E", 100)+"E3endEv", 0x460, 0x10),
		global("beyond", 0xf00, 0x10000),
		global("", 0xe00, 0x10),
	}, dynsym: []elfSymbol{global("unused", 0x800, 0x10)}}
	f := withFile(t, file.bytes())
	for offset, want := range map[uint64]string{
		0x0:   "[libx.so]+0x402000",
		0x100: "malloc [libx.so]+0x0",
		0x12f: "inner [libx.so]+0xf",
		0x130: "malloc [libx.so]+0x30",
		0x150: "malloc [libx.so]+0x50",
		0x180: "[libx.so]+0x402180",
		0x208: "ifunc [libx.so]+0x8",
		0x37f: "assembly [libx.so]+0x7f",
		0x380: "next [libx.so]+0x0",
		0x390: "[libx.so]+0x402390",
		0x401: "std::vector<int, std::allocator<int> >::push_back [libx.so]+0x1",
		0x411: "core::fmt::write [libx.so]+0x1",
		0x421: "mycrate::foo [libx.so]+0x1",
		0x431: "_Znot [libx.so]+0x1",
		0x441: `semi:colon\n\x1b[31m\xff [libx.so]+0x1`,
		0x451: strings.Repeat("é", 126) + "… [libx.so]+0x1",
		0x461: "A::end [libx.so]+0x1",
		0x800: "[libx.so]+0x402800",
		0xe01: "[libx.so]+0x402e01",
		0xfff: "beyond [libx.so]+0xff",
	} {
		f.want(0x10000+offset, want)
	}
	f.want(0x11000, "0x11000")
	f.want(0xffff, "0xffff")
}

func TestDynamicSymbolsOnly(t *testing.T) {
	f := withFile(t, elfFile{dynsym: []elfSymbol{global("exported", 0x10, 0x10)}, buildID: []byte{0xab, 0xcd}}.bytes())
	f.want(0x10018, "exported [libx.so]+0x8")
	f.want(0x10020, "[libx.so abcd]+0x402020")
}

func TestStripped(t *testing.T) {
	withFile(t, elfFile{buildID: []byte{0x8f, 0x3a, 0x5c}}.bytes()).want(0x10123, "[libx.so 8f3a5c]+0x402123")
	withFile(t, elfFile{}.bytes()).want(0x10123, "[libx.so]+0x402123")
	withFile(t, []byte("not ELF")).want(0x10123, "[libx.so]+0x1123")
	withFile(t, nil).want(0x10123, "[libx.so]+0x1123")
	// The mapped segment is not in the file's headers.
	f := newFake(t)
	f.write("root/lib/libx.so", string(elfFile{buildID: []byte{1}}.bytes()))
	f.write("maps", fmt.Sprintf("10000-11000 r-xp 00008000 fd:01 %d /lib/libx.so\n", f.inode("lib/libx.so")))
	f.start()
	f.want(0x10123, "[libx.so]+0x8123")
}

// TestDebugFile checks that symbols are read from the debug file of the build id, and not
// from one with another build id.
func TestDebugFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "8f"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ in, want string }{{"\x8f\x3a", "static"}, {"\x8f\x3b", ""}} {
		debug := elfFile{buildID: []byte(tc.in), symtab: []elfSymbol{global("static", 0x10, 0x10)}}
		if err := os.WriteFile(filepath.Join(dir, "8f/3a.debug"), debug.bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		i, symtab := readImage(bytes.NewReader(elfFile{buildID: []byte("\x8f\x3a")}.bytes()))
		if symtab {
			t.Error("a stripped file has symbols")
		}
		i.readDebug(dir)
		if name, _, _ := i.functions.find(textStart + 0x18); string(name) != tc.want {
			t.Errorf("%x: found %q, want %q", tc.in, name, tc.want)
		}
	}
}

// TestMapFiles checks that a file in map_files is preferred to the one at the path.
func TestMapFiles(t *testing.T) {
	f := newFake(t)
	f.write("root/lib/libx.so", string(elfFile{symtab: []elfSymbol{global("new", 0, 0x10)}}.bytes()))
	f.write("old", string(elfFile{symtab: []elfSymbol{global("old", 0, 0x10)}}.bytes()))
	if err := os.Symlink(filepath.Join(f.dir, "old"), filepath.Join(f.dir, "map_files/10000-11000")); err != nil {
		t.Fatal(err)
	}
	f.write("maps", fmt.Sprintf("10000-11000 r-xp %08x fd:01 99 /lib/libx.so (deleted)\n", textOffset))
	f.start()
	f.want(0x10001, "old [libx.so]+0x1")
}

// TestPath checks that a path opens only the regular file that is mapped, and nothing
// outside the process's root.
func TestPath(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, elfFile{symtab: []elfSymbol{global("secret", 0, 0x10)}}.bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	elfBytes := string(elfFile{symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes())
	for _, tc := range []struct {
		name string
		make func(f fake, path string) error
		want string
	}{
		{"file", func(f fake, path string) error { return os.WriteFile(path, []byte(elfBytes), 0o644) }, "f [x]+0x1"},
		{"fifo", func(f fake, path string) error { return unix.Mkfifo(path, 0o644) }, "[x unread]+0x1001"},
		{"directory", func(f fake, path string) error { return os.Mkdir(path, 0o755) }, "[x unread]+0x1001"},
		{"link inside", func(f fake, path string) error {
			f.write("root/lib/other", elfBytes)
			return os.Symlink("/lib/other", path)
		}, "f [x]+0x1"},
		{"link outside", func(f fake, path string) error { return os.Symlink(secret, path) }, "[x unread]+0x1001"},
		{"link above", func(f fake, path string) error { return os.Symlink("../../../../../.."+secret, path) }, "[x unread]+0x1001"},
		{"magic link", func(f fake, path string) error { return os.Symlink("/proc/self/exe", path) }, "[x unread]+0x1001"},
		{"loop", func(f fake, path string) error { return os.Symlink("x", path) }, "[x unread]+0x1001"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			path := filepath.Join(f.dir, "root/lib/x")
			if err := tc.make(f, path); err != nil {
				t.Fatal(err)
			}
			inode := f.inode("lib/x")
			if tc.name == "link inside" {
				inode = f.inode("lib/other")
			}
			f.write("maps", fmt.Sprintf("10000-11000 r-xp %08x fd:01 %d /lib/x\n", textOffset, inode))
			f.start()
			f.want(0x10001, tc.want)
		})
	}
	// The path has been replaced by another file.
	f := newFake(t)
	f.write("root/lib/x", elfBytes)
	f.write("maps", fmt.Sprintf("10000-11000 r-xp %08x fd:01 %d /lib/x\n", textOffset, f.inode("lib/x")+1))
	f.start()
	f.want(0x10001, "[x unread]+0x1001")
}

// TestExits reads a process again while it exits: it still has mappings, but their files
// cannot be opened. The same holds for a child that exits at its first use.
func TestExits(t *testing.T) {
	f := withFile(t, elfFile{symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes())
	f.want(0x10001, "f [libx.so]+0x1")
	if err := os.RemoveAll(filepath.Join(f.dir, "root")); err != nil {
		t.Fatal(err)
	}
	f.want(0x1, "0x1") // a miss: it is read again
	f.want(0x10001, "f [libx.so]+0x1")
	child := &process{dir: f.processes[seven].dir, layout: seven.Layout}
	f.read(child)
	if m := find(child.mappings, 0x10001); m == nil || m.image == nil {
		t.Errorf("the child has %+v", m)
	}
	other := &process{dir: f.processes[seven].dir, layout: seven.Layout}
	f.write("maps", fmt.Sprintf("10000-11000 r-xp %08x fd:01 %d    %s\n", textOffset, 1, "/lib/libx.so"))
	f.read(other)
	if m := find(other.mappings, 0x10001); m == nil || m.image != nil {
		t.Errorf("a process with another file there has %+v", m)
	}
}

func TestMappings(t *testing.T) {
	for line, want := range map[string]mapping{
		"10000-11000 r-xp 00001000 fd:01 42    /lib/libx.so": {start: 0x10000, end: 0x11000, offset: 0x1000, inode: 42, path: "/lib/libx.so", name: "libx.so"},
		"1-2 --xp 0 0:0 7 /a b/c  d (deleted)":               {start: 1, end: 2, inode: 7, path: "/a b/c  d (deleted)", name: "c  d"},
		`1-2 --xp 0 0:0 7 /a\012b;` + "\x1b\xff":             {start: 1, end: 2, inode: 7, path: "/a\nb;\x1b\xff", name: `a\nb:\x1b\xff`},
		"1-2 rwxp 00000000 00:00 0 ":                         {start: 1, end: 2, name: "anon"},
		"1-2 rwxp 00000000 00:00 0":                          {start: 1, end: 2, name: "anon"},
		"1-2 rwxp 00000000 00:00 0   [heap]":                 {start: 1, end: 2, name: "heap"},
		"1-2 rwxp 00000000 00:00 0   [anon:v8;]":             {start: 1, end: 2, name: "anon:v8:"},
		"1-2 rwxp 5 00:00 0 /SYSV00000000 (deleted)":         {start: 1, end: 2, name: "SYSV00000000"},
		"1-2 r--p 00000000 fd:01 42 /lib/libx.so":            {},
		"2-1 r-xp 00000000 fd:01 42 /lib/libx.so":            {},
		"1-2 r-xp 00000000 fd:01":                            {},
		"1-2 x 0 0:0 7 /a":                                   {},
		"1-10000000000000000 r-xp 0 0:0 7 /a":                {},
		"1 r-xp 0 0:0 7 /a":                                  {},
		"-1-2 r-xp 0 0:0 7 /a":                               {},
		"":                                                   {},
	} {
		got, ok := parseMapping([]byte(line))
		if got != want || ok != (want != mapping{}) {
			t.Errorf("%q:\n%+v, %v, want\n%+v", line, got, ok, want)
		}
	}
}

func TestStatus(t *testing.T) {
	for status, want := range map[string]string{
		"Name:\tx\nUid:\t1\t2\t3\t4\nNSpid:\t100\t20\t3\n": "3 2 true",
		"Uid:\t1\t2\t3\t4\nNSpid:\t100\n":                  "100 2 true",
		"Uid:\t1\t2\t3\t4\n":                               " 2 false",
		"NSpid:\t100\n":                                    "100 0 false",
		"Uid:\t1\tx\t3\t4\nNSpid:\t100\n":                  "100 0 false",
	} {
		pid, uid, ok := parseStatus(status)
		if got := fmt.Sprint(pid, " ", uid, " ", ok); got != want {
			t.Errorf("%q: %s, want %s", status, got, want)
		}
	}
}

func TestPerfMap(t *testing.T) {
	f := newFake(t)
	f.write("maps", "10000-20000 rwxp 00000000 00:00 0 \n")
	f.write("root/tmp/perf-3.map", "10000 20 Ljava/lang/String;::hash Code\n10040 0 empty\ngarbage\n0x10060 0x10 with 0x\n10080 20 unfini")
	f.start()
	f.want(0x10008, "Ljava/lang/String:::hash Code [perf map]+0x8")
	f.want(0x10061, "with 0x [perf map]+0x1")
	f.want(0x10040, "[anon]+0x40")
	f.want(0x10080, "[anon]+0x80")

	// Appended lines are read and replace functions at the same address; others stay.
	file, err := os.OpenFile(filepath.Join(f.dir, "root/tmp/perf-3.map"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("shed\n10060 10 again\n10060 20 anew\n"); err != nil {
		t.Fatal(err)
	}
	f.processes[seven].perfMissed = backoff{}
	f.want(0x10081, "unfinished [perf map]+0x1")
	f.want(0x10071, "anew [perf map]+0x11")
	f.want(0x10008, "Ljava/lang/String:::hash Code [perf map]+0x8")

	// A child that is gone may have compiled another function there.
	if got := string(f.AppendFrame(nil, Process{noPID, seven.Layout}, 0x10081)); got != "[anon]+0x81" {
		t.Errorf("in a child: %s", got)
	}

	// The compiler truncated the file.
	f.write("root/tmp/perf-3.map", "10100 10 other\n")
	f.processes[seven].perfMissed = backoff{}
	f.want(0x10101, "other [perf map]+0x1")
	f.want(0x10008, "[anon]+0x8")
}

// TestPerfMapsTooLarge checks that only the last perf map is kept above the limit.
func TestPerfMapsTooLarge(t *testing.T) {
	f := newFake(t)
	f.write("maps", "10000-20000 rwxp 00000000 00:00 0 \n")
	f.write("root/tmp/perf-3.map", "10000 20 f\n")
	large := &process{dir: gone, perf: &perfMap{functions: functions{names: make([]byte, maxPerfBytes)}}}
	f.add(Process{PID: 8}, large)
	f.start()
	f.want(0x10008, "f [perf map]+0x8")
	if large.perf != nil {
		t.Error("kept more than the limit")
	}
}

// TestPerfMapOfAnother rejects perf maps that another user can have written.
func TestPerfMapOfAnother(t *testing.T) {
	const text = "10000 20 f\n"
	for name, tc := range map[string]struct {
		make func(f fake, path string) error
		want string
	}{
		"own": {func(f fake, path string) error { return os.WriteFile(path, []byte(text), 0o600) }, "f [perf map]+0x8"},
		"another's": {func(f fake, path string) error {
			err := os.WriteFile(path, []byte(text), 0o644)
			if os.Geteuid() == 0 { // root's own files are trusted
				return errors.Join(err, os.Chown(path, 4711, 4711))
			}
			f.write("status", fmt.Sprintf("Uid:\t0\t%d\t0\t0\nNSpid:\t3\n", os.Geteuid()+1))
			return err
		}, "[anon]+0x8"},
		"link":      {func(f fake, path string) error { f.write("root/m", text); return os.Symlink("/m", path) }, "[anon]+0x8"},
		"fifo":      {func(f fake, path string) error { return unix.Mkfifo(path, 0o600) }, "[anon]+0x8"},
		"directory": {func(f fake, path string) error { return os.Mkdir(path, 0o700) }, "[anon]+0x8"},
		"none":      {func(f fake, path string) error { return nil }, "[anon]+0x8"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.write("maps", "10000-20000 rwxp 00000000 00:00 0 \n")
			if err := tc.make(f, filepath.Join(f.dir, "root/tmp/perf-3.map")); err != nil {
				t.Fatal(err)
			}
			f.start()
			f.want(0x10008, tc.want)
		})
	}
	if trusted(1000, 1000) != true || trusted(0, 1000) != true || trusted(1000, 0) != false || trusted(1001, 1000) != false {
		t.Error("trusts others than the process's user and root")
	}
}

// TestMemfd finds functions compiled by .NET, in a mapping of a file that is not ELF.
func TestMemfd(t *testing.T) {
	f := newFake(t)
	f.write("memfd", "code")
	if err := os.Symlink(filepath.Join(f.dir, "memfd"), filepath.Join(f.dir, "map_files/10000-20000")); err != nil {
		t.Fatal(err)
	}
	f.write("maps", "10000-20000 r-xs 00001000 00:01 99 /memfd:doublemapper (deleted)\n")
	f.write("root/tmp/perf-3.map", "10000 20 Main\n")
	f.start()
	f.want(0x10001, "Main [perf map]+0x1")
	f.want(0x10100, "[memfd:doublemapper]+0x1100")
}

// TestBackoff checks that misses read a process again at once, and then ever less often.
func TestBackoff(t *testing.T) {
	var b backoff
	var due []int
	for i := range 5000 {
		if b.due() {
			due = append(due, i)
		}
	}
	if want := []int{0, 2, 6, 14, 30, 62, 126, 254, 510, 1022, 2046, 3071, 4096}; !reflect.DeepEqual(due, want) {
		t.Errorf("due at %d, want %d", due, want)
	}

	f := newFake(t)
	f.write("maps", "10000-11000 rwxp 0 00:00 0\n")
	f.start()
	f.want(0x20000, "0x20000")
	f.write("maps", "10000-11000 rwxp 0 00:00 0\n20000-21000 rwxp 0 00:00 0\n")
	f.want(0x20000, "0x20000")
	f.want(0x20000, "[anon]+0x0")
	f.write("maps", "10000-11000 rwxp 0 00:00 0\n20000-21000 rwxp 0 00:00 0\n30000-31000 rwxp 0 00:00 0\n")
	f.want(0x30000, "[anon]+0x0")
	// Its mappings stay when it is gone.
	f.write("maps", "")
	f.want(0x40000, "0x40000")
	f.want(0x30000, "[anon]+0x0")
}

// noPID is a pid that the kernel never assigns.
const noPID = 1<<31 - 1

// TestLayout has processes that are gone, that run the same program, and that run another.
func TestLayout(t *testing.T) {
	f := withFile(t, elfFile{symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes())
	for p, want := range map[Process]string{
		{noPID, seven.Layout}:                   "f [libx.so]+0x1",
		{noPID, seven.Layout + 1}:               "0x10001",
		{7, seven.Layout + 1}:                   "0x10001",
		{uint32(os.Getpid()), seven.Layout}:     "f [libx.so]+0x1", // it no longer has that layout
		{uint32(os.Getpid()), seven.Layout + 1}: "0x10001",
	} {
		if got := string(f.AppendFrame(nil, p, 0x10001)); got != want {
			t.Errorf("%v: %s, want %s", p, got, want)
		}
	}
	if n := f.Unknown(); n != 3 {
		t.Errorf("%d processes are unknown, want 3", n)
	}
	// It executes another program: its old mappings stay, and the new ones belong to
	// another layout.
	f.write("stat", "7 (x) S"+strings.Repeat(" 0", 22)+" 1 2 4 0 0\n")
	f.write("maps", "20000-21000 rwxp 0 00:00 0\n")
	f.want(0x20000, "0x20000")
	f.want(0x10001, "f [libx.so]+0x1")
}

func TestStat(t *testing.T) {
	const before = " S 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0 0 "
	for stat, want := range map[string]uint32{
		"1 (a) b) 1 (c)" + before + "10 20 30 0": LayoutOf(10, 20, 30),
		"1 (a)" + before + "10 20 30":            LayoutOf(10, 20, 30),
		"1 (a)" + before + "1 1 0 0 0":           0, // hidden
		"1 (a)" + before + "10 20":               0,
		"1 (a)" + before + "10 x 30 0":           0,
		"1 (a":                                   0,
		"":                                       0,
	} {
		if got, ok := parseStat(stat); ok != (want != 0) || ok && got != want {
			t.Errorf("%s: %d, %v, want %d", stat, got, ok, want)
		}
	}
}

// TestCache checks that a file is read once for all processes, and again if it changed.
func TestCache(t *testing.T) {
	f := withFile(t, elfFile{symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes())
	first := f.processes[seven].mappings[0].image
	f.start()
	if f.processes[seven].mappings[0].image != first || len(f.images) != 1 {
		t.Error("read again")
	}
	f.write("root/lib/libx.so", string(elfFile{symtab: []elfSymbol{global("longer", 0, 0x10)}}.bytes()))
	f.start()
	f.want(0x10001, "longer [libx.so]+0x1")

	// Above the limit, the images used last stay, and others are read again.
	for n := range maxImages {
		f.clock++
		f.images[imageKey{ino: uint64(n)}] = &image{used: f.clock}
	}
	second := f.processes[seven].mappings[0].image
	f.evict()
	if len(f.images) != maxImages || !first.evicted || !second.evicted {
		t.Errorf("%d images, evicted %v and %v", len(f.images), first.evicted, second.evicted)
	}
	f.want(0x10001, "longer [libx.so]+0x1")
	if f.processes[seven].mappings[0].image == second {
		t.Error("not read again")
	}
	large := imageKey{ino: maxImages - 1}
	f.images[large].functions.names = make([]byte, maxImageBytes+1)
	f.evict()
	if _, ok := f.images[large]; ok {
		t.Error("more bytes than the limit")
	}
	f.want(0x10001, "longer [libx.so]+0x1")

	// The build id of a file that is gone stays.
	g := withFile(t, elfFile{buildID: []byte{1}, symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes())
	g.want(0x10001, "f [libx.so]+0x1")
	for _, i := range g.images {
		i.functions.names = make([]byte, maxImageBytes+1)
	}
	g.evict()
	if err := os.Remove(filepath.Join(g.dir, "root/lib/libx.so")); err != nil {
		t.Fatal(err)
	}
	g.want(0x10001, "[libx.so 01]+0x402001")
}

// TestLies checks that no memory is allocated for sizes that only the headers claim.
func TestLies(t *testing.T) {
	data := elfFile{symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes()
	table := binary.LittleEndian.Uint64(data[0x28:]) // the section headers
	for at, section := range map[uint64]string{2: "symbols", 3: "names"} {
		for _, size := range []uint64{1 << 20, 1 << 40, 1<<63 - 1} {
			lie := bytes.Clone(data)
			binary.LittleEndian.PutUint64(lie[table+at*64+0x20:], size)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			i, _ := readImage(bytes.NewReader(lie))
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; len(i.functions.byStart) != 0 || n > 1<<18 {
				t.Errorf("%s of %d bytes: %d functions, and %d bytes allocated", section, size, len(i.functions.byStart), n)
			}
		}
	}
}

// TestSharedNames checks that memory stays bounded if very many symbols or sections share
// one very long name.
func TestSharedNames(t *testing.T) {
	const count = maxSymbols
	var symbols []symbol
	for n := range uint64(count) {
		symbols = append(symbols, symbol{start: n, size: 1})
	}
	endless := bytes.Repeat([]byte("a"), 16<<20)
	f := newFunctions(symbols, endless, nil)
	if n := len(f.names); n > maxStringBytes || n < maxStringBytes/2 {
		t.Errorf("%d bytes of names", n)
	}
	if name, _, ok := f.find(0); !ok || len(name) != maxMangled+1 {
		t.Errorf("a name of %d bytes, %v", len(name), ok)
	}

	data := elfFile{}.bytes()
	names := uint64(len(data))
	data = append(append(data, bytes.Repeat([]byte("a"), 512<<10)...), 0)
	table := uint64(len(data))
	const sections = 1 << 10
	for range sections {
		data, _ = binary.Append(data, binary.LittleEndian, elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: names, Size: table - names})
	}
	binary.LittleEndian.PutUint64(data[0x28:], table)
	binary.LittleEndian.PutUint16(data[0x3c:], sections)
	binary.LittleEndian.PutUint16(data[0x3e:], 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	readImage(bytes.NewReader(data))
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d bytes allocated for names of sections", n)
	}
}

// TestTooLarge reads no table above the limit, even if it is there.
func TestTooLarge(t *testing.T) {
	data := elfFile{symtab: []elfSymbol{global("f", 0, 0x10)}}.bytes()
	file, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	table := binary.LittleEndian.Uint64(data[0x28:])
	binary.LittleEndian.PutUint64(data[table+3*64+0x20:], maxStringBytes+1)
	if _, err := file.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(2 * maxStringBytes); err != nil {
		t.Fatal(err)
	}
	if i, _ := readImage(file); len(i.functions.byStart) != 0 || len(i.segments) != 1 {
		t.Errorf("%d functions in %d segments", len(i.functions.byStart), len(i.segments))
	}
	binary.LittleEndian.PutUint64(data[table+3*64+0x20:], maxStringBytes)
	if _, err := file.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if i, _ := readImage(file); len(i.functions.byStart) != 1 {
		t.Errorf("%d functions at the limit", len(i.functions.byStart))
	}
}

// TestManyMappings checks the limits on the mappings of a process and on the length of a
// line.
func TestManyMappings(t *testing.T) {
	var maps strings.Builder
	for n := range 2 * maxMapped {
		fmt.Fprintf(&maps, "%x-%x r-xp 0 0:0 1 /a\n", n, n+1)
	}
	count := func(maps string) (n int) {
		for range executable(strings.NewReader(maps)) {
			n++
		}
		return n
	}
	if n := count(maps.String()); n != maxMapped {
		t.Errorf("%d mappings", n)
	}
	if n := count("1-2 r-xp 0 0:0 1 /a\n2-3 r-xp 0 0:0 1 /" + strings.Repeat("a", maxLineBytes) + "\n"); n != 1 {
		t.Errorf("%d mappings with a long line", n)
	}
}

// TestTooManyProcesses checks that the least recently used processes are dropped.
func TestTooManyProcesses(t *testing.T) {
	r := NewResolver()
	p := own(t)
	r.process(p)
	for n := range uint32(maxProcesses - 1) {
		r.clock++
		r.add(Process{1<<30 + n, 1}, &process{dir: gone, used: r.clock})
	}
	r.process(p)
	last := Process{1<<30 + maxProcesses - 2, 1}
	r.process(Process{noPID, 1})
	if r.processes[p] == nil || r.processes[last] == nil || r.byLayout[p.Layout] == nil || len(r.processes) != maxProcesses/2+1 {
		t.Errorf("%d processes", len(r.processes))
	}
	bytes := r.bytes
	r.bytes += maxProcessBytes
	r.process(Process{noPID, 2})
	if r.bytes -= maxProcessBytes; r.bytes != bytes || len(r.processes) != maxProcesses/4+1 {
		t.Errorf("%d processes, %d bytes of %d", len(r.processes), r.bytes, bytes)
	}
	for range maxProcesses {
		r.add(Process{noPID, uint32(r.clock)}, &process{dir: gone, used: r.clock})
		r.clock++
	}
	if r.processes[p] != nil || r.byLayout[p.Layout] != nil || r.bytes != 0 {
		t.Errorf("%d bytes left", r.bytes)
	}
}

func thisFunction() uint64 { return uint64(reflect.ValueOf(thisFunction).Pointer()) }

// TestOwn resolves functions of this process, whose file the go command stripped.
func TestOwn(t *testing.T) {
	r := NewResolver()
	pid := own(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(r.AppendFrame(nil, pid, thisFunction()+1)), "chargetrace/internal/symbol.thisFunction ["+filepath.Base(exe)+"]+0x1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}

	// Files mapped after the first read are found too.
	path := filepath.Join(t.TempDir(), "later.so")
	if err := os.WriteFile(path, elfFile{symtab: []elfSymbol{global("later", 0x10, 0x10)}}.bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	code, err := unix.Mmap(int(file.Fd()), textOffset, textSize, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(code)
	address := uint64(reflect.ValueOf(code).Pointer())
	if got, want := string(r.AppendFrame(nil, pid, address+0x18)), "later [later.so]+0x8"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestOtherVDSO rejects the vDSO of 32-bit processes, and files with that name.
func TestOtherVDSO(t *testing.T) {
	for line, want := range map[string]bool{
		"7ffd6a1f2000-7ffd6a1f4000 r-xp 00000000 00:00 0 [vdso]":   true,
		"f7fc4000-f7fc6000 r-xp 00000000 00:00 0 [vdso]":           false,
		"7ffd6a1f2000-7ffd6a1f4000 r-xp 00000000 fd:01 42 /[vdso]": false,
		"7ffd6a1f2000-7ffd6a1f4000 r-xp 00000000 fd:01 42 /vdso":   false,
	} {
		if m, ok := parseMapping([]byte(line)); !ok || m.isVDSO() != want {
			t.Errorf("%s: %v", line, !want)
		}
	}
}

// TestVDSO resolves a function that package elf finds in the vDSO. It has two names on
// amd64.
func TestVDSO(t *testing.T) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var base uint64
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			start, _, _ := strings.Cut(line, "-")
			if base, err = strconv.ParseUint(start, 16, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	file, err := elf.NewFile(bytes.NewReader(ownVDSO()))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	name := map[string]string{"amd64": "clock_gettime", "arm64": "__kernel_clock_gettime"}[runtime.GOARCH]
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("the vDSO has no %s", name)
	}
	if got, want := string(NewResolver().AppendFrame(nil, own(t), base+symbols[i].Value+2)), name+" [vdso]+0x2"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// buildGo builds a Go program in a temporary directory.
func buildGo(t *testing.T, text string, env []string, args ...string) (path string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module app\n", "main.go": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", append(append([]string{"build", "-o", "app"}, args...), ".")...)
	build.Dir = dir
	build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "app")
}

// TestGoBinaries resolves a function of Go programs, after they have exited, for several
// ways to build them.
func TestGoBinaries(t *testing.T) {
	for _, args := range [][]string{{}, {"-ldflags=-s -w"}, {"-buildmode=pie"}, {"-buildmode=pie", "-ldflags=-s -w"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			app := exec.Command(buildGo(t, `package main

import (
	"fmt"
	"os"
	"reflect"
)

//go:noinline
func fill(n int) []byte { return make([]byte, n) }

func main() {
	fill(len(os.Args))
	fmt.Println(reflect.ValueOf(fill).Pointer())
	os.Stdin.Read(make([]byte, 1))
}
`, nil, args...))
			stdin, err := app.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := app.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := app.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			address, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			r := NewResolver()
			pid := running(t, app.Process.Pid)
			r.process(pid)
			stdin.Close()
			if err := app.Wait(); err != nil {
				t.Fatal(err)
			}
			if got := string(r.AppendFrame(nil, pid, address+3)); got != "main.fill [app]+0x3" {
				t.Errorf("%#x is %s", address, got)
			}
		})
	}
}

// TestGoTables finds in stripped programs, of 64 and 32 bits, every function that package
// elf finds in the unstripped program.
func TestGoTables(t *testing.T) {
	for _, arch := range []string{"amd64", "386"} {
		const text = "package main\nfunc main() { println() }\n"
		full, err := elf.Open(buildGo(t, text, []string{"GOARCH=" + arch}))
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		symbols, err := full.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{}, {"-ldflags=-s"}} {
			file, err := os.Open(buildGo(t, text, []string{"GOARCH=" + arch}, args...))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			i, _ := readImage(file)
			found := 0
			for _, s := range symbols {
				// A symbol without a size is a label.
				if elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Size == 0 {
					continue
				}
				name, start, ok := i.functions.find(s.Value)
				got, want := string(name), s.Name
				if len(args) > 0 { // the linker's symbols have an ABI suffix and no middle dot
					got, want = strings.ReplaceAll(got, "·", "."), strings.TrimSuffix(want, ".abi0")
				}
				if !ok || start != s.Value || got != want {
					t.Errorf("%s %s: %#x is %s, %#x, %v, want %s", arch, args, s.Value, got, start, ok, want)
				}
				found++
			}
			if found < 1000 {
				t.Errorf("%s %s: %d functions", arch, args, found)
			}
		}
	}
}

// TestGoTableOfAnotherLinker finds the start of Go's functions from the one that C calls,
// as in a stripped program that uses cgo. Without that, no function is resolved.
func TestGoTableOfAnotherLinker(t *testing.T) {
	file := elfFile{
		dynsym: []elfSymbol{global("crosscall2", 0x340, 0x10)},
		goFunctions: []elfSymbol{
			{name: "_rt0_amd64_linux", start: 0, size: 0x40}, {name: "crosscall2", start: 0x40, size: 0x10}, {name: "main.fill", start: 0x50, size: 0x10},
		},
		buildID: []byte{1},
	}
	f := withFile(t, file.bytes())
	f.want(0x10301, "_rt0_amd64_linux [libx.so]+0x1")
	f.want(0x10341, "crosscall2 [libx.so]+0x1")
	f.want(0x1035f, "main.fill [libx.so]+0xf")
	f.want(0x10360, "[libx.so 01]+0x402360")
	file.dynsym[0].name = "other"
	f = withFile(t, file.bytes())
	f.want(0x1035f, "[libx.so 01]+0x40235f")
	f.want(0x1005f, "[libx.so 01]+0x40205f")
}

func FuzzELF(f *testing.F) {
	f.Add(elfFile{symtab: []elfSymbol{global("f", 0, 0x10), global("outside", 1<<30, 0x10)}, dynsym: []elfSymbol{global("g", 0x10, 0)}, buildID: []byte{1, 2}}.bytes())
	f.Add(elfFile{dynsym: []elfSymbol{global("crosscall2", 0, 0x10)}, goFunctions: []elfSymbol{{name: "crosscall2", size: 0x10}}}.bytes())
	f.Add(ownVDSO())
	f.Fuzz(func(t *testing.T, data []byte) {
		i, _ := readImage(bytes.NewReader(data))
		if len(i.buildID) > maxBuildID {
			t.Errorf("a build id of %d bytes", len(i.buildID))
		}
		checkFunctions(t, &i.functions)
		for _, x := range i.functions.byStart {
			if i.segmentEnd(x.start) == x.start {
				t.Errorf("%#x is in no segment", x.start)
			}
		}
	})
}

func FuzzMaps(f *testing.F) {
	f.Add([]byte("10000-11000 r-xp 00001000 fd:01 42    /lib/libx.so\n11000-12000 rwxp 0 0:0 0 [anon:x]\n"))
	f.Add([]byte("2-3 r-xp 0 0:0 0\n1-2 r-xp 0 0:0 0\n2-4 r-xp 0 0:0 0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var end uint64
		for m := range executable(bytes.NewReader(data)) {
			if m.start < end || m.end <= m.start {
				t.Errorf("%#x-%#x after %#x", m.start, m.end, end)
			}
			end = m.end
			checkText(t, m.name)
		}
	})
}

func FuzzPerfMap(f *testing.F) {
	f.Add([]byte("10000 20 f\n10010 10 g\n"), 5)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		var whole, parts perfMap
		whole.add(data)
		// Reading it in two parts, as it grows, gives the same result.
		parts.add(data[:min(max(at, 0), len(data))])
		parts.add(data[parts.read:])
		if !reflect.DeepEqual(whole, parts) {
			t.Errorf("%+v, in parts %+v", whole, parts)
		}
		checkFunctions(t, &whole.functions)
	})
}

func FuzzName(f *testing.F) {
	f.Add([]byte("_ZNSt6vectorIiSaIiEE9push_backEOi"))
	f.Add([]byte("_RNvCs1234_7mycrate3foo"))
	f.Add([]byte("\x1b;\xff"))
	f.Fuzz(func(t *testing.T, name []byte) { checkText(t, string(appendName(nil, name))) })
}

func checkFunctions(t *testing.T, f *functions) {
	for n, x := range f.byStart {
		if n > 0 && x.start <= f.byStart[n-1].start {
			t.Errorf("%#x after %#x", x.start, f.byStart[n-1].start)
		}
		if name, start, ok := f.find(x.start); x.size > 0 && (!ok || start != x.start || len(name) == 0) {
			t.Errorf("at %#x: %q, %#x, %v", x.start, name, start, ok)
		}
	}
}

func checkText(t *testing.T, text string) {
	if len(text) > maxName || strings.ContainsFunc(text, func(r rune) bool { return r == ';' || r == '\ufffd' || !strconv.IsPrint(r) }) {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	r := NewResolver()
	pid, address := own(b), thisFunction()
	var dst []byte
	for b.Loop() {
		dst = r.AppendFrame(dst[:0], pid, address+1)
	}
	b.ReportMetric(float64(len(r.processes[pid].mappings)), "mappings")
	runtime.KeepAlive(dst)
}

// BenchmarkRead reads this process, with its file cached and not.
func BenchmarkRead(b *testing.B) {
	p := own(b)
	b.Run("cached", func(b *testing.B) {
		r := NewResolver()
		for b.Loop() {
			r.process(p).close()
			clear(r.processes)
		}
	})
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			NewResolver().process(p).close()
		}
	})
}
