//go:build guest

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wideRow is a row of -wide, of a charge or of reclaim.
type wideRow struct {
	pid, tid           string
	comm               string
	requested, current int64
	kind, outcome      string
	cgroup             string
	limitedBy          string // a path, = or -
	usage, max, room   int64
	flags              []string
}

func (r *wideRow) has(flag string) bool { return slices.Contains(r.flags, flag) }

// wideRows waits for the end of a tracer that has -wide, and returns its rows of
// charges. It must know all their kinds, and have seen each to return.
func (tr *tracer) wideRows(t testing.TB) []wideRow {
	t.Helper()
	tr.end(t)
	if strings.Contains(tr.stderr.String(), "coverage:") {
		t.Errorf("not all is known: %s", tr.stderr)
	}
	content, err := os.ReadFile(tr.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if !strings.HasPrefix(lines[0], "TIME    PID     TID ") {
		t.Fatalf("no header: %q", content)
	}
	var rows []wideRow
	for _, line := range lines[1:] {
		if lostLine.MatchString(line) {
			t.Errorf("%s", line)
			continue
		}
		r, ok := parseWide(t, line)
		if ok {
			rows = append(rows, r)
		}
	}
	return rows
}

// parseWide parses a row of a charge.
func parseWide(t testing.TB, line string) (r wideRow, ok bool) {
	t.Helper()
	f := strings.Fields(line)
	if len(f) < 9 {
		t.Fatalf("too short: %q", line)
	}
	if f[4] == "-" { // reclaim and OOM kills
		return r, false
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return n
	}
	r = wideRow{
		pid: f[1], tid: f[2], comm: f[3], requested: number(f[4]), current: number(f[5]),
		kind: f[7], outcome: f[8], cgroup: f[9], limitedBy: f[10],
	}
	rest := f[11:]
	if r.limitedBy != "-" {
		usage, max, _ := strings.Cut(rest[0], "/")
		r.usage, r.max, r.room = number(usage), number(max), number(rest[1])
		rest = rest[1:]
	}
	r.flags = rest[1:]
	return r, true
}

// ofKind returns the rows of one kind.
func ofKind(rows []wideRow, kind string) []wideRow {
	return slices.DeleteFunc(slices.Clone(rows), func(r wideRow) bool { return r.kind != kind })
}

// TestAncestorsLimit fills a cgroup without a limit in one that has one.
func TestAncestorsLimit(t *testing.T) { withEachAttach(t, ancestorsLimit) }

func ancestorsLimit(t *testing.T, attach string) bool {
	a := newCgroup(t)
	a.write(t, "memory.max", "10M")
	a.write(t, "cgroup.subtree_control", "+memory")
	b := a.child(t, "b")
	alloc, input := startReader(t, b)
	wide := chargetrace(t, "-pid", alloc.pid(), "-attach", attach, "-wide")
	limited := chargetrace(t, "-pid", alloc.pid(), "-attach", attach, "-wide", "-limited")
	plain := chargetrace(t, "-pid", alloc.pid(), "-attach", attach)
	before := a.number(t, "memory.events", "max")
	fillUp(input)
	alloc.waitKilled(t)
	if wide.missedCalls(t) || limited.missedCalls(t) || plain.missedCalls(t) {
		return false
	}

	rows := wide.wideRows(t)
	checkFailures(t, rows, a, a.number(t, "memory.events", "max")-before)
	var hits []wideRow
	for _, r := range rows {
		if r.cgroup != b.path() || r.kind != "memory" || r.max != 2560 || r.room != r.max-r.usage ||
			r.limitedBy != a.path() || len(r.flags) > 0 && !slices.Equal(r.flags, []string{"*"}) {
			t.Errorf("row %+v", r)
		}
		// Charges that cannot fail go beyond the limit.
		if r.outcome == "failed" && r.room > 0 {
			t.Errorf("a failure with room: %+v", r)
		}
		if r.outcome != "ok" || r.has("*") {
			hits = append(hits, r)
		}
	}
	// Two tracers look one after the other. From the first failure on,
	// when CPUs give back what they have in stock, they may see different
	// things.
	failed := func(r wideRow) bool { return r.outcome == "failed" }
	first := slices.IndexFunc(rows, failed)
	if first < 0 {
		t.Fatal("nothing failed")
	}
	got := limited.wideRows(t)
	gotFirst, hitsFirst := slices.IndexFunc(got, failed), slices.IndexFunc(hits, failed)
	if gotFirst < 0 || !equalRows(got[:gotFirst+1], hits[:hitsFirst+1]) {
		t.Errorf("-limited shows %d rows, want these %d\ngot  %+v\nwant %+v", len(got), len(hits), got, hits)
	}
	for _, r := range got {
		if r.outcome == "ok" && !r.has("*") {
			t.Errorf("-limited shows %+v", r)
		}
	}
	limited.counted(t)

	plainRows := plain.rows(t).rows
	if len(plainRows) != len(rows) {
		t.Fatalf("%d rows, but %d wide ones: %s\n%s", len(plainRows), len(rows), plain.stderr, wide.stderr)
	}
	var reached int
	for i, r := range plainRows {
		at := r.mark == "* "+a.path()
		if r.mark == "* LIMIT REACHED "+a.path() {
			at = true
			reached++
		}
		if i <= first && at != rows[i].has("*") || !at && r.mark != "" {
			t.Errorf("row %d, %v, %+v", i, r, rows[i])
		}
	}
	if reached == 0 {
		t.Error("the limit was never reached")
	}
	return true
}

func equalRows(a, b []wideRow) bool {
	return slices.EqualFunc(a, b, func(x, y wideRow) bool { return fmt.Sprint(x) == fmt.Sprint(y) })
}

// TestVictim has a small process ask for what makes the kernel kill a big one.
func TestVictim(t *testing.T) {
	g := newCgroup(t)
	big := startWorkload(t, g, 0, "named 8 big")
	big.begin(t)
	if _, err := big.stdout.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	small := startWorkload(t, g, 1, "named 4 small")
	tr := chargetrace(t, "-pid", small.pid())
	g.write(t, "memory.max", strconv.FormatInt(g.number(t, "memory.current", "")+1<<20, 10))
	small.begin(t)
	big.waitKilled(t)
	// Memory that the kernel is slow to take from the big one can cost the small
	// one its life too.
	small.stdin.Close()
	small.Wait()
	out := tr.rows(t)
	want := regexp.MustCompile(fmt.Sprintf(`^--- OOM: %s ran out; small \(%s\) asked; killed big \(%s\), which held anonymous (\d+) `,
		g.path(), small.pid(), big.pid()))
	if len(out.ooms) == 0 || !want.MatchString(out.ooms[0]) {
		t.Fatalf("OOM kills are %q, want %s", out.ooms, want)
	}
	if held, _ := strconv.Atoi(want.FindStringSubmatch(out.ooms[0])[1]); held < 2048 || held > 4096 {
		t.Errorf("held %d pages, not its 8 MiB and a little more", held)
	}
	if !strings.Contains(tr.stderr.String(), fmt.Sprintf("small (%s) asked for more, big (%s) was killed", small.pid(), big.pid())) {
		t.Errorf("the summary does not tell: %s", tr.stderr)
	}
}

// TestSwap fills a cgroup until its swap is full too.
func TestSwap(t *testing.T) {
	swapOn(t)
	g := newCgroup(t)
	g.write(t, "memory.max", "6M")
	g.write(t, "memory.swap.max", "2M")
	p := startWorkload(t, g, 0, "touch 20")
	tr := chargetrace(t, "-wide")
	swap := chargetrace(t, "-wide", "-counter", "swap")
	plain := chargetrace(t, "-counter", "swap")
	p.begin(t)
	p.waitKilled(t)
	events := g.number(t, "memory.swap.events", "max")
	for _, tr := range []*tracer{tr, swap, plain} {
		tr.stop(t)
	}
	rows := ofKind(tr.wideRows(t), "swap")
	var charged, failed int64
	for _, r := range rows {
		if r.cgroup != g.path() || r.limitedBy != "=" || r.max != 512 {
			t.Errorf("row %+v", r)
		}
		switch r.outcome {
		case "ok":
			charged += r.requested
		case "failed":
			failed++
		default:
			t.Errorf("swap has no batches: %+v", r)
		}
	}
	// From 6.12 on the kernel rarely asks when swap is nearly full.
	if charged < 256 || failed != events {
		t.Errorf("%d pages charged to swap, %d charges failed, but memory.swap.events says %d", charged, failed, events)
	}
	if got := swap.wideRows(t); !equalRows(got, rows) {
		t.Errorf("-counter swap shows %d rows, want %d", len(got), len(rows))
	}
	plainRows := plain.rows(t).rows
	if len(plainRows) != len(rows) {
		t.Errorf("%d rows, want %d", len(plainRows), len(rows))
	}
	for _, r := range plainRows {
		if r.kind != "[swap]" {
			t.Errorf("row %v is not said to be of swap", r)
		}
	}
}

// swapOn swaps to the machine's disk until the test ends.
func swapOn(t *testing.T) {
	t.Helper()
	const device = "/dev/nvme0n1"
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	size, err := disk.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	// union swap_header of include/linux/swap.h
	header := make([]byte, pageSize)
	binary.NativeEndian.PutUint32(header[1024:], 1)
	binary.NativeEndian.PutUint32(header[1028:], uint32(size/pageSize-1))
	copy(header[pageSize-10:], "SWAPSPACE2")
	_, err = disk.WriteAt(header, 0)
	if err := errors.Join(err, disk.Sync(), disk.Close()); err != nil {
		t.Fatal(err)
	}
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		t.Fatal(err)
	}
	call := func(number uintptr) error {
		_, _, errno := unix.Syscall(number, uintptr(unsafe.Pointer(path)), 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	}
	if err := call(unix.SYS_SWAPON); err != nil {
		t.Fatalf("swapon: %v", err)
	}
	t.Cleanup(func() {
		if err := call(unix.SYS_SWAPOFF); err != nil {
			t.Errorf("swapoff: %v", err)
		}
	})
}

func TestHugetlb(t *testing.T) {
	if err := os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+hugetlb"), 0); err != nil {
		t.Fatal(err)
	}
	g := newCgroup(t)
	g.write(t, "hugetlb.2MB.max", "4M")
	p := startWorkload(t, g, 0, "hugetlb 4")
	tr := chargetrace(t, "-wide", "-pid", p.pid(), "-counter", "hugetlb,hugetlb_rsvd")
	p.begin(t)
	p.stdin.Close()
	p.Wait() // killed by SIGBUS
	rows := tr.wideRows(t)
	var got []string
	for _, r := range rows {
		if r.cgroup != g.path() || r.has("remote") || r.has("high") {
			t.Errorf("row %+v", r)
		}
		got = append(got, fmt.Sprintf("%s %d %s %s", r.kind, r.requested, r.outcome, r.limitedBy))
	}
	want := []string{
		"hugetlb_rsvd 2048 ok -", "hugetlb 512 ok =", "hugetlb 512 ok =", "hugetlb 512 failed =",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestTransparentHugePages(t *testing.T) {
	g := newCgroup(t)
	p := startWorkload(t, g, 0, "thp 4")
	tr := chargetrace(t, "-wide", "-pid", p.pid())
	p.begin(t)
	p.wait(t)
	var huge int
	for _, r := range tr.wideRows(t) {
		if r.kind != "memory" || r.cgroup != g.path() || r.outcome != "ok" || r.has("remote") {
			t.Errorf("row %+v", r)
		}
		if r.requested == 512 {
			huge++
		}
	}
	if huge != 4 {
		t.Errorf("%d charges of a huge page, want 4", huge)
	}
}

func TestTmpfs(t *testing.T) {
	g := newCgroup(t)
	file := filepath.Join(t.TempDir(), "file")
	p := startWorkload(t, g, 0, "file "+file+" 8")
	tr := chargetrace(t, "-wide", "-pid", p.pid())
	p.begin(t)
	p.wait(t)
	var pages int64
	for _, r := range tr.wideRows(t) {
		if r.kind != "memory" || r.cgroup != g.path() || r.outcome != "ok" || r.has("remote") {
			t.Errorf("row %+v", r)
		}
		pages += r.requested
	}
	if pages < 8<<20/pageSize {
		t.Errorf("%d pages were charged for 8 MiB", pages)
	}
}

// TestRemote floods sockets of another cgroup: who sends makes the charge, and
// the cgroup pays that the socket was made in, even after it was removed.
func TestRemote(t *testing.T) {
	loopbackUp(t)
	for _, removed := range []bool{false, true} {
		t.Run(fmt.Sprintf("removed=%v", removed), func(t *testing.T) {
			const sockets = 16
			payer := newCgroup(t)
			listener := startWorkload(t, payer, 0, fmt.Sprintf("listen %d", sockets))
			if removed {
				root := controlGroup(cgroupRoot)
				root.write(t, "cgroup.procs", listener.pid())
				if err := os.Remove(string(payer)); err != nil {
					t.Fatal(err)
				}
			}
			own := newCgroup(t)
			sender := startWorkload(t, own, 0, fmt.Sprintf("send %d", sockets))
			tr := chargetrace(t, "-wide", "-pid", sender.pid())
			sender.begin(t)
			sender.wait(t)
			var remote int
			for _, r := range tr.wideRows(t) {
				switch {
				case r.kind != "memory":
					t.Errorf("row %+v", r)
				case r.cgroup == payer.path() && r.has("remote"):
					remote++
				case r.cgroup != own.path() || r.has("remote"):
					t.Errorf("row %+v", r)
				}
			}
			if remote == 0 {
				t.Error("no charge to the sockets' cgroup")
			}
		})
	}
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

// TestRemovedAndHostile traces a cgroup that is made and removed meanwhile, and
// whose name is no friend of terminals.
func TestRemovedAndHostile(t *testing.T) {
	tr := chargetrace(t, "-wide")
	parent := newCgroup(t)
	parent.write(t, "cgroup.subtree_control", "+memory")
	// The kernel itself refuses a newline.
	if err := os.Mkdir(filepath.Join(string(parent), "a\nb"), 0o755); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a newline in the name of a cgroup: %v", err)
	}
	g := parent.child(t, "\x1b[31mx\xff")
	p := startWorkload(t, g, 0, "touch 1")
	p.begin(t)
	p.wait(t)
	if err := os.Remove(string(g)); err != nil {
		t.Fatal(err)
	}
	tr.stop(t)
	want := parent.path() + `/\x1b[31mx\xff`
	var found int
	for _, r := range tr.wideRows(t) {
		if r.pid == p.pid() && r.cgroup == want {
			found++
		}
	}
	if found == 0 {
		t.Errorf("no rows of %s", want)
	}
	if text := tr.stderr.String(); !strings.Contains(text, "\n"+want+" ") || strings.ContainsRune(text, '\x1b') {
		t.Errorf("the summary is %q", text)
	}
}

// TestCgroupV1 fills cgroups of v1 up to their limits for memory, and for memory
// and swap together.
func TestCgroupV1(t *testing.T) {
	mount := mountV1(t)
	for _, tc := range []struct{ limit, failing string }{
		{"memory.limit_in_bytes", "memory"},
		{"memory.memsw.limit_in_bytes", "memsw"},
	} {
		t.Run(tc.failing, func(t *testing.T) {
			name, err := os.MkdirTemp(mount, "t")
			if err != nil {
				t.Fatal(err)
			}
			a := controlGroup(name)
			a.removeAfter(t)
			if _, err := os.Stat(filepath.Join(name, "memory.use_hierarchy")); err == nil {
				a.write(t, "memory.use_hierarchy", "1")
			}
			a.write(t, "memory.limit_in_bytes", "10M")
			if tc.failing == "memsw" {
				a.write(t, tc.limit, "10M")
			}
			b := a.child(t, "b")
			p := startWorkload(t, controlGroup(cgroupRoot), 0, "touch 20")
			b.write(t, "cgroup.procs", p.pid())
			tr := chargetrace(t, "-wide", "-pid", p.pid())
			failcnt := strings.Replace(tc.limit, "limit_in_bytes", "failcnt", 1)
			before := a.number(t, failcnt, "")
			p.begin(t)
			p.waitKilled(t)
			after := a.number(t, failcnt, "")
			path := strings.TrimPrefix(string(b), mount)
			parent := strings.TrimPrefix(string(a), mount)
			kinds := map[string]int{}
			var failed int64
			for _, r := range tr.wideRows(t) {
				kinds[r.kind]++
				if r.cgroup != path || r.has("remote") {
					t.Errorf("row %+v", r)
				}
				if r.outcome == "ok" {
					continue
				}
				failed++
				if r.kind != tc.failing || r.limitedBy != parent || r.max != 2560 {
					t.Errorf("a failure not at the limit of %s: %+v", parent, r)
				}
			}
			if failed == 0 || failed != after-before {
				t.Errorf("%d charges failed, but %s says %d", failed, failcnt, after-before)
			}
			if kinds["memory"] == 0 || kinds["memsw"] < kinds["memory"] {
				t.Errorf("rows by kind: %v", kinds)
			}
			if !strings.Contains(tr.stderr.String(), " "+parent+" ran out of memory: ") {
				t.Errorf("the summary does not tell of the kill: %s", tr.stderr)
			}
		})
	}
}

const v1Root = "/run/cgroup-v1"

// mountV1 mounts the memory controller of cgroup v1, for good, and returns where.
func mountV1(t *testing.T) string {
	t.Helper()
	if exists(v1Root) {
		return v1Root
	}
	if err := os.Mkdir(v1Root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("memory", v1Root, "cgroup", 0, "memory"); err != nil {
		t.Fatal(err)
	}
	return v1Root
}
