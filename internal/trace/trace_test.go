package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

var info = stream.Info{PageSize: 4096, StartBootNanos: 1e9, BootWallNanos: 1e18, Host: "h\x1b", CommandLine: []string{"chargetrace", "-o"}}

// counted are the counts at the end of most recordings here.
var counted = stream.Counts{Seen: 9, Filtered: 2, Lost: 3, BatchPages: 64}

func comm(s string) (c [16]byte) {
	copy(c[:], s)
	return c
}

// newWriter begins a recording in which only w.tick writes a block early: how long a test
// takes does not change the file.
func newWriter(t testing.TB, out io.Writer, info stream.Info) *Writer {
	t.Helper()
	w, err := NewWriter(out, info)
	if err != nil {
		t.Fatal(err)
	}
	w.delay = math.MaxInt64
	return w
}

// storyNames is the number of names and stacks at the beginning of a story.
const storyNames = 6

// story returns the names of some cgroups and some stacks, and n events of all types.
func story(n int) []event.Event { return storyOf(Version, n) }

// storyOf returns the events of the test of a version of the format.
func storyOf(version uint32, n int) []event.Event {
	r := rand.New(rand.NewPCG(1, 2))
	events := []event.Event{
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "b\xff"},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "a"},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3, Hierarchy: 4}, ParentID: 1, Name: "v1"},
		{Type: event.Stack, StackNumber: 7, Frames: "charge_memcg+0x3a;do_anonymous_page+0x1"},
		{Type: event.Stack, StackNumber: 1 << 20, Frames: "main.fill [app]+0x3a;0x7fff12345678"},
	}
	if version >= 6 {
		events[0].Identity = "name=java\npod=cart\xff\n"
	}
	usage := int64(100)
	for i := range n {
		pid := uint32(4000 + r.IntN(3))
		e := event.Event{
			Type: event.Charge, CPU: r.Uint32N(2), BootNanos: info.StartBootNanos + uint64(i)*1000 + r.Uint64N(2000), PID: pid, TID: pid + r.Uint32N(2),
			Comm: comm("alloc"), Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, Outcome: event.OK, Counter: 0xffff8880_12345678, StackPointer: 0xffffc900_00001000 + uint64(pid),
			RequestedPages: 64, UsagePages: usage, MaxPages: math.MaxInt64 / 4096,
			Limiting: event.Level{CgroupID: 2, UsagePages: usage + 5, MaxPages: 100_000}, High: event.Level{MaxPages: math.MaxUint64},
		}
		usage += 64
		switch i % 50 {
		case 6:
			e.KernelStack, e.UserStack = 7, 1<<20
		case 7:
			e.Outcome, e.FailedAt, e.Flags = event.Failed, 2, event.Predicted|event.Remote
		case 8:
			e.Outcome, e.FailedAt, e.Flags = event.BatchMiss, 3, event.Retry
		case 9:
			e.Outcome, e.FailedAt = event.Failed, 77
			e.Comm = comm("sixteen bytes\x00ab")
		case 10:
			e.Cgroup.Hierarchy, e.Kind, e.UsagePages, e.RequestedPages = 4, event.Memsw, -3, math.MaxUint64
			e.High = event.Level{CgroupID: 1, UsagePages: math.MinInt64, MaxPages: 3}
		case 11:
			e = event.Event{Type: event.Lost, CPU: 1, BootNanos: e.BootNanos, LostCharges: 1 << 40}
		case 12, 13:
			e = event.Event{Type: event.ReclaimBegin, BootNanos: e.BootNanos, PID: 7, TID: 8, Cgroup: event.CgroupID{ID: 2}}
			if i%50 == 13 {
				e.Type, e.FreedPages, e.DurationNanos = event.ReclaimEnd, 32, 1<<33
			}
		case 14:
			e = event.Event{Type: event.OOMKill, BootNanos: e.BootNanos, PID: 7, TID: 8, Comm: comm("x"), Cgroup: event.CgroupID{ID: 2}}
			e.Victim = event.Victim{PID: 9, Comm: comm("big"), AnonPages: 1, FilePages: 2, ShmemPages: 3, SwapPages: math.MaxUint64, PageTableBytes: 1 << 40, CgroupID: 3}
			e.OOMNanos, e.UsagePages, e.MaxPages, e.Flags = e.BootNanos-1, -7, 1<<50, event.LimitWrite
			if version >= 5 {
				e.Order = 3
			}
		case 15, 16:
			e = event.Event{Type: event.Fork, BootNanos: e.BootNanos, PID: 7, TID: 8, Comm: comm("x"), ChildPID: math.MaxUint32 - uint32(i)}
			if i%50 == 16 {
				e.Flags = event.Existing
			}
		case 17, 18:
			e = event.Event{Type: event.Uncharge, CPU: 1, BootNanos: e.BootNanos, PID: 7, TID: 8, Comm: comm("x"), Cgroup: e.Cgroup, Kind: event.Memory, Counter: e.Counter, RequestedPages: 64, UsagePages: usage}
			if usage -= 64; i%50 == 18 {
				e.Type, e.Cgroup.Hierarchy, e.Kind, e.RequestedPages, e.UsagePages = event.ForcedCharge, 4, event.Memsw, math.MaxUint64, math.MinInt64
			}
		case 19, 20:
			e = event.Event{Type: event.Usage, BootNanos: info.StartBootNanos, Cgroup: e.Cgroup, UsagePages: math.MaxInt64}
			if i%50 == 20 {
				e.UsagePages, e.Flags = 0, event.Existing
			}
		case 21, 22:
			if version < 4 {
				break
			}
			e = event.Event{Type: event.OOM, BootNanos: e.BootNanos, PID: 7, TID: 8, Comm: comm("x"), Cgroup: e.Cgroup, OOMNanos: 1 << 60, UsagePages: -7, MaxPages: 9, Result: event.Disabled, Flags: event.SysRq}
			if i%50 == 22 {
				e.Type, e.Kind, e.OOMNanos, e.Result, e.Flags, e.DurationNanos = event.Throttle, event.Swap, 0, 0, 0, 1<<40
				if version < 5 {
					e.Kind = event.Memory
				}
			}
		case 23:
			if version >= 4 {
				e = event.Event{Type: event.MemoryStat, BootNanos: e.BootNanos, Cgroup: e.Cgroup, OOMNanos: 1 << 60, ParentID: 2, UsagePages: -7, Stat: "anon 4096\n"}
			}
		case 24:
			if version >= 4 {
				e = event.Event{Type: event.Held, BootNanos: e.BootNanos, Cgroup: e.Cgroup, OOMNanos: 1 << 60, Victim: event.Victim{PID: 9, Comm: comm("big"), AnonPages: 1, CgroupID: 3}}
			}
		}
		events = append(events, e)
	}
	return events
}

func record(t testing.TB, events []event.Event) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := newWriter(t, &buf, info)
	for len(events) > 0 {
		n := min(len(events), 100)
		if err := w.Write(events[:n]); err != nil {
			t.Fatal(err)
		}
		events = events[n:]
	}
	if err := w.Close(counted); err != nil {
		t.Fatal(err)
	}
	if w.Bytes() != int64(buf.Len()) {
		t.Errorf("wrote %d bytes, says %d", buf.Len(), w.Bytes())
	}
	return buf.Bytes()
}

// play returns the events of a recording, and apart from them its names and stacks.
func play(r io.Reader, o Options) (events, names []event.Event, rd *Reader, err error) {
	rd, err = NewReader(r, o)
	if err != nil {
		return nil, nil, nil, err
	}
	return playReader(rd)
}

func playReader(rd *Reader) (events, names []event.Event, _ *Reader, err error) {
	batch := make([]event.Event, 256)
	for {
		n, err := rd.Read(batch)
		for _, e := range batch[:n] {
			if e.Type == event.CgroupName || e.Type == event.Stack {
				names = append(names, e)
			} else {
				events = append(events, e)
			}
		}
		if err == io.EOF {
			return events, names, rd, nil
		}
		if err != nil {
			return events, names, rd, err
		}
	}
}

func same(t *testing.T, got, want []event.Event) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("event %d: %+v\nwant %+v", i, got[i], want[i])
		}
	}
}

func TestRoundTrip(t *testing.T) {
	const n = blockEvents + 5000 // two blocks
	events := story(n)
	file := record(t, events)
	got, names, rd, err := play(bytes.NewReader(file), Options{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, events[storyNames:])
	if len(names) != storyNames {
		t.Errorf("names %+v", names)
	}
	for _, name := range events[:storyNames] {
		found := false
		for _, x := range names {
			found = found || x == name
		}
		if !found {
			t.Errorf("no name %+v in %+v", name, names)
		}
	}
	if got := rd.Info(); !reflect.DeepEqual(got, info) {
		t.Errorf("%+v, want %+v", got, info)
	}
	charges := uint64(0)
	for _, e := range events {
		if e.Type == event.Charge {
			charges++
		}
	}
	want := counted
	want.Whole, want.RecordedEvents, want.RecordedCharges = true, n, charges
	if got, err := rd.Counts(); err != nil || got != want || rd.events != n {
		t.Errorf("%+v, want %+v; %d events; %v", got, want, rd.events, err)
	}
}

func TestEmpty(t *testing.T) {
	got, _, rd, err := play(bytes.NewReader(record(t, nil)), Options{})
	if err != nil || len(got) != 0 || rd.totals == nil {
		t.Errorf("%d events, %v", len(got), err)
	}
}

// TestBlockBytes records more names and stacks than fit into one block.
func TestBlockBytes(t *testing.T) {
	charge := touch(1)[storyNames]
	var stacks, names []event.Event
	for i := range uint32(3000) {
		charge.KernelStack = 1 + i
		frames := fmt.Sprintf("%d;%s", i, strings.Repeat("f", 5600))
		stacks = append(stacks, event.Event{Type: event.Stack, StackNumber: 1 + i, Frames: frames}, charge)
	}
	charge.KernelStack = 0
	for i := range uint64(blockEvents) {
		charge.Cgroup.ID = 1 + i
		names = append(names, event.Event{Type: event.CgroupName, Cgroup: charge.Cgroup, Name: fmt.Sprintf("%0255d", i)}, charge)
	}
	for name, events := range map[string][]event.Event{"stacks": stacks, "names": names} {
		file := record(t, events)
		at := blocks(t, file)
		for _, pos := range at[:len(at)-1] {
			var h blockHeader
			if err := h.parse(file[pos:]); err != nil || h.size > blockBytes+6000 {
				t.Errorf("%s: a block of %d bytes, %v", name, h.size, err)
			}
		}
		got, meant, _, err := play(bytes.NewReader(file), Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range got {
			if meant[i] != events[2*i] || got[i] != events[2*i+1] {
				t.Fatalf("%s: %+v of %+v\nwant %+v of %+v", name, got[i], meant[i], events[2*i+1], events[2*i])
			}
		}
		if len(got) != len(events)/2 {
			t.Errorf("%s: %d events", name, len(got))
		}
	}
}

// TestMerged merges recordings in which a number means different cgroups or stacks.
func TestMerged(t *testing.T) {
	part := func(cgroup, kernel, user string) *Reader {
		events := []event.Event{
			{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 1, Name: cgroup},
			{Type: event.Stack, StackNumber: 7, Frames: kernel},
			{Type: event.Stack, StackNumber: 8, Frames: user},
			{Type: event.Charge, BootNanos: 1e9, Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, KernelStack: 7, UserStack: 8},
		}
		rd, err := NewReader(bytes.NewReader(record(t, events)), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return rd
	}
	parts, err := NewSequence(part("a", "k", "u"), part("a", "k", "v"), part("a", "l", "v"), part("b", "l", "v"), part("b", "l", "v"))
	if err != nil {
		t.Fatal(err)
	}
	var merged bytes.Buffer
	w := newWriter(t, &merged, info)
	if _, err := stream.Copy(w, parts, stream.Filter{}); err != nil {
		t.Fatal(err)
	}
	rd, err := NewReader(&merged, Options{})
	if err != nil {
		t.Fatal(err)
	}
	cgroups, frames := make(map[event.CgroupID]string), make(map[uint32]string)
	var got []string
	batch := make([]event.Event, 256)
	for err == nil {
		var n int
		n, err = rd.Read(batch)
		for _, e := range batch[:n] {
			switch e.Type {
			case event.CgroupName:
				cgroups[e.Cgroup] = e.Name
			case event.Stack:
				frames[e.StackNumber] = e.Frames
			default:
				got = append(got, cgroups[e.Cgroup]+" "+frames[e.KernelStack]+" "+frames[e.UserStack])
			}
		}
	}
	if want := []string{"a k u", "a k v", "a l v", "b l v", "b l v"}; err != io.EOF || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// TestLateNames records names that change after the last event with the cgroup, and at a time in
// which nothing else happens.
func TestLateNames(t *testing.T) {
	var file bytes.Buffer
	w := newWriter(t, &file, info)
	e := event.Event{Type: event.ReclaimBegin, BootNanos: info.StartBootNanos + 5, Cgroup: event.CgroupID{ID: 3}}
	name := func(id, parent uint64, name, identity string) event.Event {
		return event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: id}, ParentID: parent, Name: name, Identity: identity}
	}
	first := []event.Event{name(2, 1, "a", ""), name(1, 0, "", ""), name(3, 2, "b", ""), e}
	late := []event.Event{name(3, 2, "b", "name=late\n"), name(2, 1, "a", "pod=late\n")}
	if err := errors.Join(w.Write(first), w.Write(late), w.Close(counted)); err != nil {
		t.Fatal(err)
	}
	for _, from := range []uint64{0, e.BootNanos} {
		rd, err := NewReader(bytes.NewReader(file.Bytes()), Options{})
		if err != nil {
			t.Fatal(err)
		}
		rd.Limit(from, 0)
		last := make(map[uint64]string)
		batch, events := make([]event.Event, 16), 0
		for err == nil {
			var n int
			n, err = rd.Read(batch)
			for _, e := range batch[:n] {
				if e.Type == event.CgroupName {
					last[e.Cgroup.ID] = e.Identity
				} else {
					events++
				}
			}
		}
		if want := (map[uint64]string{1: "", 2: "pod=late\n", 3: "name=late\n"}); err != io.EOF || events != 1 || !maps.Equal(last, want) {
			t.Errorf("from %d: %d events, names %v, %v", from, events, last, err)
		}
	}
}

// TestTimes reads parts of a recording by time, with and without seeking.
func TestTimes(t *testing.T) {
	events := story(3*blockEvents + 10)
	file := record(t, events)
	from, to := info.StartBootNanos+140_000_000, info.StartBootNanos+150_000_000
	var want []event.Event
	for _, e := range events[storyNames:] {
		if e.BootNanos >= from && e.BootNanos < to {
			want = append(want, e)
		}
	}
	seekable := &countingReader{ReadSeeker: bytes.NewReader(file)}
	for name, r := range map[string]io.Reader{"seek": seekable, "stream": io.MultiReader(bytes.NewReader(file))} {
		rd, err := NewReader(r, Options{})
		if err != nil {
			t.Fatal(err)
		}
		rd.Limit(from, to)
		got, names, _, err := playReader(rd)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		same(t, got, want)
		if len(names) != storyNames {
			t.Errorf("%s: %d names", name, len(names))
		}
	}
	if seekable.n > int64(len(file))*2/3 {
		t.Errorf("read %d of %d bytes", seekable.n, len(file))
	}
}

type countingReader struct {
	io.ReadSeeker
	n int64
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.ReadSeeker.Read(b)
	r.n += int64(n)
	return n, err
}

// blocks returns the offsets of the blocks of a recording, and of its end.
func blocks(t *testing.T, file []byte) (at []int) {
	t.Helper()
	for pos := len(signature) + 4; ; {
		at = append(at, pos)
		if pos == len(file) {
			return at
		}
		var h blockHeader
		if err := h.parse(file[pos:]); err != nil {
			t.Fatal(err)
		}
		pos += headerBytes + int(h.stored)
	}
}

// TestCut cuts a recording at every byte of its last three blocks.
func TestCut(t *testing.T) {
	const perBlock = 60
	events := story(4 * perBlock)
	var buf bytes.Buffer
	w := newWriter(t, &buf, info)
	w.Write(events[:storyNames])
	for i := storyNames; i < len(events); i += perBlock {
		w.Write(events[i : i+perBlock])
		w.tick()
	}
	if err := w.Close(counted); err != nil {
		t.Fatal(err)
	}
	file := buf.Bytes()
	at := blocks(t, file) // meta, four of events, end
	if len(at) != 7 {
		t.Fatalf("blocks at %d", at)
	}
	for cut := at[3]; cut < len(file); cut++ {
		whole := 0
		for whole+2 < len(at) && at[whole+2] <= cut {
			whole++
		}
		got, _, rd, err := play(bytes.NewReader(file[:cut]), Options{})
		if !errors.Is(err, ErrEndsEarly) || rd.totals != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		same(t, got, events[storyNames:storyNames+min(whole, 4)*perBlock])
	}
	// A damaged byte costs no other block, unless it hides where the next one begins.
	for i, pos := range at[1:5] {
		others := append(slices.Clone(events[storyNames:storyNames+i*perBlock]), events[storyNames+(i+1)*perBlock:]...)
		for n := range at[i+2] - pos {
			bad := bytes.Clone(file)
			bad[pos+n] ^= 0x10
			got, _, rd, err := play(bytes.NewReader(bad), Options{Name: "x"})
			// Byte 19 is the highest of the decompressed length, which then exceeds
			// maxPayload.
			if n < 4 || n >= 12 && n < 16 || n == 19 {
				if !errors.Is(err, ErrEndsEarly) {
					t.Fatalf("block %d, byte %d damaged: %v", i, n, err)
				}
				same(t, got, events[storyNames:storyNames+i*perBlock])
				continue
			}
			if want := "x: the recording is damaged: 1 of its blocks could not be read"; !errors.Is(err, ErrDamaged) || err.Error() != want || rd.totals == nil {
				t.Fatalf("block %d, byte %d damaged: %v, want %s", i, n, err, want)
			}
			same(t, got, others)
		}
	}
	// A damaged end is as good as none.
	bad := bytes.Clone(file)
	bad[at[2]-1] ^= 0x10
	bad[at[5]+headerBytes] ^= 0x10
	got, _, rd, err := play(bytes.NewReader(bad), Options{Name: "x"})
	if want := "x: the recording ends early: EOF; the recording is damaged: 2 of its blocks could not be read"; err == nil || err.Error() != want || rd.totals != nil {
		t.Errorf("%v, want %s", err, want)
	}
	same(t, got, events[storyNames+perBlock:])
}

// TestDamagedInside reads blocks with a valid checksum whose payload is damaged.
func TestDamagedInside(t *testing.T) {
	events := story(60)
	part := func(spoil func(h *blockHeader, payload []byte)) []byte {
		b := newBlockWriter()
		for i := range events {
			if e := &events[i]; e.Type.IsName() {
				b.define(e)
			} else {
				b.add(e)
			}
		}
		h := blockHeader{kind: kindEvents, events: uint32(b.events), least: b.least, greatest: b.greatest, bootWallNanos: info.BootWallNanos}
		payload := b.payload()
		spoil(&h, payload)
		var file bytes.Buffer
		w := newWriter(t, &file, info)
		w.encoder.putBlock(&h, payload)
		w.Write(events[:storyNames+1])
		w.Close(counted)
		return file.Bytes()
	}
	for name, spoil := range map[string]func(*blockHeader, []byte){
		"sections":        func(_ *blockHeader, payload []byte) { payload[0]++ },
		"names":           func(_ *blockHeader, payload []byte) { payload[5] = '/' },
		"too many events": func(h *blockHeader, _ []byte) { h.events += 1000 },
	} {
		got, names, rd, err := play(bytes.NewReader(part(spoil)), Options{})
		if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrEndsEarly) || rd.damaged != 1 || rd.totals == nil {
			t.Errorf("%s: %v", name, err)
		}
		same(t, got, events[storyNames:storyNames+1])
		same(t, names, events[:3]) // of the cgroup that is charged, and above
	}
}

// TestTooManyContexts has a block with more contexts than a block has events.
func TestTooManyContexts(t *testing.T) {
	for n, want := range map[int]error{blockEvents: nil, blockEvents + 1: errDamaged} {
		w := newBlockWriter()
		for i := range n {
			w.add(&event.Event{Type: event.Lost, CPU: uint32(i)})
		}
		var r blockReader
		r.version = Version
		if err := r.start(blockHeader{events: uint32(n)}, w.payload()); err != want {
			t.Errorf("%d contexts: %v", n, err)
		}
	}
}

// TestVersions expects that a type newer than the version of a recording is damage.
func TestVersions(t *testing.T) {
	for typ, since := range map[event.Type]uint32{event.Fork: 1, event.Uncharge: 3, event.ForcedCharge: 3, event.Usage: 3, event.Held: 4} {
		w := newBlockWriter()
		w.add(&event.Event{Type: typ, Kind: event.Memory})
		payload := w.payload()
		for version := uint32(2); version <= Version; version++ {
			var r blockReader
			r.version = version
			if err := r.start(blockHeader{events: 1}, payload); (err == nil) != (version >= since) {
				t.Errorf("version %d, type %d: %v", version, typ, err)
			}
		}
	}
}

// TestSequence plays complete and damaged recordings, with and without stacks.
func TestSequence(t *testing.T) {
	events := story(3)
	part := func(name string, i stream.Info, spoil func([]byte) []byte) *Reader {
		var file bytes.Buffer
		w := newWriter(t, &file, i)
		w.Write(events)
		w.Close(stream.Counts{Seen: 3, LostStacks: 2, UnnamedProcesses: 1, DamagedBlocks: 4, BatchPages: 64})
		rd, err := NewReader(bytes.NewReader(spoil(file.Bytes())), Options{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return rd
	}
	whole := func(file []byte) []byte { return file }
	cut := func(file []byte) []byte {
		at := blocks(t, file)
		return file[:at[len(at)-2]]
	}
	damaged := func(file []byte) []byte {
		file[blocks(t, file)[1]+headerBytes] ^= 1
		return file
	}
	stacks, net, both := info, info, info
	stacks.KernelStacks, stacks.Net = true, true
	net.Net = true
	both.UserStacks, both.Net = true, true

	s, err := NewSequence(part("a", net, cut), part("b", stacks, whole), part("c", both, damaged), part("d", net, whole))
	if err != nil {
		t.Fatal(err)
	}
	all := info
	all.KernelStacks, all.UserStacks, all.Net = true, true, true
	if got := s.Info(); !reflect.DeepEqual(got, all) {
		t.Errorf("%+v, want %+v", got, all)
	}
	sink := new(counter)
	got, err := stream.Copy(sink, s, stream.Filter{})
	if want := "a: the recording ends early: EOF\nc: the recording is damaged: 1 of its blocks could not be read"; err == nil || err.Error() != want || sink.events != 9 {
		t.Errorf("%d events, %v, want %s", sink.events, err, want)
	}
	want := stream.Counts{Seen: 9, RecordedEvents: 9, RecordedCharges: 9, LostStacks: 6, UnnamedProcesses: 3, DamagedBlocks: 13, BatchPages: 64, Read: 9, Shown: 9}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	if s, err = NewSequence(part("a", net, whole), part("b", info, whole)); err != nil || s.Info().Net {
		t.Errorf("what was given back is part of all: %+v, %v", s, err)
	}
	if got, err = stream.Copy(new(counter), s, stream.Filter{}); err != nil || !got.Whole {
		t.Errorf("%+v, %v", got, err)
	}
}

// counter is a sink that counts events without names and stacks.
type counter struct{ events int }

func (c *counter) Write(batch []event.Event) error {
	for i := range batch {
		if !batch[i].Type.IsName() {
			c.events++
		}
	}
	return nil
}

func (c *counter) Close(stream.Counts) error { return nil }

func TestRefuses(t *testing.T) {
	file := record(t, story(10))
	newer := bytes.Clone(file)
	newer[len(signature)] = Version + 1
	huge := bytes.Clone(file[:len(signature)+4+headerBytes])
	binary.LittleEndian.PutUint32(huge[len(signature)+4+16:], 1<<30)
	for name, tc := range map[string]struct {
		file []byte
		want string
	}{
		"empty":     {nil, "x: not a recording of chargetrace: EOF"},
		"text":      {[]byte("TIME     PID    COMM"), "x: not a recording of chargetrace"},
		"newer":     {newer, "x: format version 7 is not supported: this program reads versions 1 to 6"},
		"cut":       {file[:40], "x: first block: unexpected EOF"},
		"huge":      {huge, "x: first block: damaged block: its length of 1073741824 bytes exceeds 16777216"},
		"text mode": {bytes.ReplaceAll(file, []byte("\r\n"), []byte("\n")), "x: not a recording of chargetrace"},
	} {
		if _, err := NewReader(bytes.NewReader(tc.file), Options{Name: "x"}); err == nil || err.Error() != tc.want {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

// writeTeller is an io.Writer that sends the time of each write.
type writeTeller struct {
	bytes.Buffer
	written chan time.Time
}

func (w *writeTeller) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	w.written <- time.Now()
	return n, err
}

// TestDelay expects an event in the file after exactly a second of a fake clock.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		buf := &writeTeller{written: make(chan time.Time, 10)}
		w, err := NewWriter(buf, info)
		if err != nil {
			t.Fatal(err)
		}
		<-buf.written // the signature
		<-buf.written // the meta block
		events := story(1)
		begin := time.Now()
		w.Write(events)
		if delay := (<-buf.written).Sub(begin); delay != maxDelay {
			t.Errorf("written after %v", delay)
		}
		got, _, _, err := play(bytes.NewReader(buf.Bytes()), Options{})
		if !errors.Is(err, ErrEndsEarly) {
			t.Error(err)
		}
		same(t, got, events[storyNames:])
		w.Close(counted)
	})
}

// TestFollow reads a recording that is being written.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	events := story(99)
	w := newWriter(t, out, info)
	result := make(chan []event.Event)
	go func() {
		got, _, _, err := play(in, Options{Follow: true})
		if err != nil {
			t.Error(err)
		}
		result <- got
	}()
	for chunk := range slices.Chunk(events, 26) {
		w.Write(chunk)
		w.tick()
	}
	w.Close(counted)
	same(t, <-result, events[storyNames:])
}

// growing is a file that is still being written.
type growing struct {
	file    []byte
	written atomic.Int64
	read    int64
}

func (g *growing) Read(b []byte) (int, error) {
	n := copy(b, g.file[g.read:g.written.Load()])
	if g.read += int64(n); n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestFollowFrom follows a recording from its last event on, while a block to be skipped
// is still incomplete.
func TestFollowFrom(t *testing.T) {
	first := event.Event{Type: event.Fork, BootNanos: 1, ChildPID: 1}
	last := event.Event{Type: event.Fork, BootNanos: 2 * uint64(maxDelay), ChildPID: 2}
	var file bytes.Buffer
	w := newWriter(t, &file, info)
	for _, e := range []event.Event{first, last} {
		w.Write([]event.Event{e})
		w.tick()
	}
	w.Close(counted)
	at := blocks(t, file.Bytes())
	for half := at[1] + headerBytes; half < at[2]; half++ {
		synctest.Test(t, func(t *testing.T) {
			in := &growing{file: file.Bytes()}
			in.written.Store(int64(half))
			rd, err := NewReader(in, Options{Follow: true})
			if err != nil {
				t.Fatal(err)
			}
			rd.Limit(last.BootNanos, 0)
			var got []event.Event
			done := make(chan struct{})
			go func() {
				defer close(done)
				got, _, _, err = playReader(rd)
			}()
			synctest.Wait() // the reader waits for more
			in.written.Store(int64(file.Len()))
			<-done
			if err != nil {
				t.Fatalf("cut at %d: %v", half, err)
			}
			same(t, got, []event.Event{last})
		})
	}
}

type fullDisk struct{ left int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if len(b) > d.left {
		return 0, io.ErrShortWrite
	}
	d.left -= len(b)
	return len(b), nil
}

func TestWriteFails(t *testing.T) {
	w := newWriter(t, &fullDisk{600}, info)
	w.Write(story(1000))
	w.tick() // as the timer does
	if err := w.Write(story(1)); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Write: %v", err)
	}
	if err := w.Close(counted); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Close: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(record(f, story(60)))
	f.Add([]byte(signature))
	f.Fuzz(func(t *testing.T, file []byte) {
		play(bytes.NewReader(file), Options{})
	})
}

// FuzzBlock skips the checksum and the compression.
func FuzzBlock(f *testing.F) {
	b := newBlockWriter()
	for _, e := range story(60) {
		if e.Type.IsName() {
			b.define(&e)
		} else {
			b.add(&e)
		}
	}
	f.Add(b.payload(), uint32(60))
	f.Fuzz(func(t *testing.T, payload []byte, n uint32) {
		var b blockReader
		b.version = Version
		if b.start(blockHeader{events: n}, payload) != nil {
			return
		}
		var batch [64]event.Event
		for !b.done() {
			n, err := b.read(batch[:])
			if err != nil {
				return
			}
			for i := range batch[:n] {
				_, _ = batch[i].Kind.String(), batch[i].Outcome.String()
			}
		}
	})
}

// touch returns the charges of one thread that touches memory.
func touch(n int) []event.Event {
	r := rand.New(rand.NewPCG(1, 2))
	events := story(1)
	e := events[storyNames]
	usage := int64(0)
	for range n {
		e.BootNanos += 100_000 + r.Uint64N(1<<17)
		e.UsagePages, e.Limiting.UsagePages = usage, usage+5
		if usage += 64; usage > 90_000 {
			usage = 0
		}
		events = append(events, e)
	}
	return events
}

func TestSize(t *testing.T) {
	const n = 200_000
	file := record(t, touch(n))
	if perEvent := float64(len(file)) / n; perEvent > 5 {
		t.Errorf("%.2f bytes an event", perEvent)
	} else {
		t.Logf("%.2f bytes an event", perEvent)
	}
}

// churn returns charges and as many uncharges, as with -net.
func churn(n int) []event.Event {
	events := touch(n / 2)
	back := events[storyNames]
	back.Type, back.CPU, back.Kind = event.Uncharge, 1, event.Memory
	mixed := events[:storyNames:storyNames]
	for _, e := range events[storyNames:] {
		back.BootNanos, back.UsagePages = e.BootNanos+10, e.UsagePages+64
		mixed = append(mixed, e, back)
	}
	return mixed
}

func BenchmarkReader(b *testing.B) {
	const n = 1 << 20
	file := record(b, touch(n))
	batch := make([]event.Event, 256)
	b.ReportAllocs()
	for b.Loop() {
		rd, err := NewReader(bytes.NewReader(file), Options{})
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = rd.Read(batch)
		}
		if err != io.EOF || rd.events != n+1 {
			b.Fatal(err, rd.events)
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds()/1e6, "Mevents/s")
}

// BenchmarkWriter writes to a file, and to the memory of a Ring.
func BenchmarkWriter(b *testing.B) {
	const n = 1 << 20
	newRing := func(b *testing.B) stream.Sink {
		r, err := NewRing(info, RingOptions{Keep: time.Minute, Memory: make([]byte, 64<<20)})
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	for name, events := range map[string][]event.Event{"charges": touch(n), "net": churn(n)} {
		for to, newSink := range map[string]func(*testing.B) stream.Sink{
			"file": func(b *testing.B) stream.Sink { return newWriter(b, io.Discard, info) }, "ring": newRing,
		} {
			b.Run(name+"/"+to, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					w := newSink(b)
					for chunk := range slices.Chunk(events, 256) {
						if err := w.Write(chunk); err != nil {
							b.Fatal(err)
						}
					}
					if err := w.Close(counted); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
			})
		}
	}
}
