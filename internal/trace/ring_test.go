package trace

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// newRing returns a Ring of the smallest memory.
func newRing(t testing.TB, keep time.Duration) *Ring {
	t.Helper()
	r, err := NewRing(info, RingOptions{Keep: keep, Memory: make([]byte, MinRingBytes)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// saved returns the events and names that a Ring saves, and the Info and the counts.
func saved(t testing.TB, r *Ring, from uint64) (events, names []event.Event, i stream.Info, c stream.Counts) {
	t.Helper()
	var file bytes.Buffer
	s, err := r.Snapshot(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(&file); err != nil {
		t.Fatal(err)
	}
	events, names, rd, err := play(&file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if c, err = rd.Counts(); err != nil || !c.Whole || c.RecordedEvents != uint64(len(events)) || c.Seen != c.RecordedCharges+c.Lost+c.Filtered {
		t.Errorf("%d events, but %+v, %v", len(events), c, err)
	}
	return events, names, rd.Info(), c
}

// TestRingTime keeps 60 s of 10 minutes. The names are from the beginning.
func TestRingTime(t *testing.T) {
	const second = uint64(time.Second)
	r := newRing(t, time.Minute)
	all := touch(6000)
	for i := range all {
		all[i].BootNanos = info.StartBootNanos + uint64(i)*second/10
	}
	r.Write(story(0))
	for batch := range slices.Chunk(all, 7) {
		r.Write(batch)
	}
	last := all[len(all)-1].BootNanos
	got, names, i, c := saved(t, r, last-60*second)
	first := len(all) - len(got)
	if first < len(all)-620 || first > len(all)-601 {
		t.Errorf("%d events are kept", len(got))
	}
	same(t, got, all[first:])
	if len(names) != 3 || names[0].Name != "b\xff" || i.StartBootNanos != got[0].BootNanos || i.BootWallNanos != info.BootWallNanos || c.Lost != 0 {
		t.Errorf("%v %+v %+v", names, i, c)
	}
	// Older events are asked for than are kept, and newer ones.
	if got, _, i, _ := saved(t, r, 0); i.StartBootNanos != got[0].BootNanos || got[0].BootNanos > last-60*second {
		t.Errorf("from %d: %+v", got[0].BootNanos, i)
	}
	if got, names, i, _ := saved(t, r, last+1); len(got)+len(names) != 0 || i.StartBootNanos != last+1 {
		t.Errorf("%d events, %+v", len(got), i)
	}
	// A trigger holds what is before it.
	r.Hold(last)
	late := all[len(all)-1]
	late.BootNanos += 50 * second
	r.Write([]event.Event{late})
	if got, _, _, _ := saved(t, r, 0); len(got) < 602 || got[len(got)-1].BootNanos != late.BootNanos {
		t.Errorf("%d events are held", len(got))
	}
	r.Hold(0)
	late.BootNanos += 20 * second
	r.Write([]event.Event{late})
	if got, _, _, _ := saved(t, r, 0); len(got) != 2 {
		t.Errorf("%d events after the hold", len(got))
	}
}

// TestRingMemory writes many times the memory, in blocks of all sizes: what is kept is the end of
// it, in at least half of the memory.
func TestRingMemory(t *testing.T) {
	r := newRing(t, time.Hour)
	random := rand.New(rand.NewPCG(3, 4))
	var all []event.Event
	usage := story(50)
	r.Write(usage[:storyNames])
	for range 300 {
		batch := slices.Clone(usage[storyNames:])
		for len(batch) < 4000 {
			batch = append(batch, batch...)
		}
		batch = batch[:1+random.IntN(4000)]
		for i := range batch {
			batch[i].BootNanos = info.StartBootNanos + uint64(len(all)+i)*1000
			if batch[i].Type == event.Charge {
				batch[i].StackPointer = random.Uint64()
			}
			batch[i].Flags &^= event.Existing
		}
		if err := r.Write(batch); err != nil {
			t.Fatal(err)
		}
		all = append(all, batch...)
		if random.IntN(5) == 0 {
			if _, err := r.Snapshot(0); err != nil { // ends the block
				t.Fatal(err)
			}
		}
	}
	got, _, _, c := saved(t, r, 0)
	same(t, got, all[len(all)-len(got):])
	used := 0
	for n := r.first; n < r.next; n++ {
		used += r.at(n).end - r.at(n).begin
	}
	if len(got) == len(all) || used < MinRingBytes/2 || used > MinRingBytes {
		t.Errorf("%d of %d events in %d bytes: %+v", len(got), len(all), used, c)
	}
}

// TestRingSlow writes new events while a slow disk takes a snapshot: what is overwritten is lost
// in the recording, and counted.
func TestRingSlow(t *testing.T) {
	r := newRing(t, time.Hour)
	at := info.StartBootNanos
	write := func(n int) {
		batch := touch(n)
		for i := range batch {
			at += 1000
			batch[i].BootNanos, batch[i].StackPointer = at, rand.Uint64()
		}
		if err := r.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		write(1000)
	}
	s, err := r.Snapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	whole := int(s.tail.all.minus(s.tail.counted).events)
	var file bytes.Buffer
	writes := 0
	err = s.Write(writerFunc(func(b []byte) (int, error) {
		if writes++; writes == 2 { // the head, the info and one block are written
			for range 60 {
				write(1000)
			}
		}
		return file.Write(b)
	}))
	if err != nil {
		t.Fatal(err)
	}
	events, _, rd, err := play(&file, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := rd.Counts()
	lost, charges := uint64(0), 0
	for i := range events {
		if events[i].Type == event.Lost {
			lost += events[i].LostCharges
		} else {
			charges++
		}
	}
	if charges+int(lost) != whole || lost == 0 || c.Lost != lost || c.RecordedCharges != uint64(charges) || charges == 0 || c.Seen != uint64(whole) {
		t.Errorf("%d events, %d lost of %d: %+v", charges, lost, whole, c)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestRingNames renames a cgroup whose events are kept: the new name is in each recording.
func TestRingNames(t *testing.T) {
	r := newRing(t, time.Minute)
	r.Write(story(3))
	renamed := event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "b\xff", Identity: "name=late\n"}
	if _, err := r.Snapshot(0); err != nil { // ends the block
		t.Fatal(err)
	}
	r.Write([]event.Event{renamed})
	for range 2 {
		events, names, _, _ := saved(t, r, 0)
		if len(events) != 3 || len(names) == 0 || names[len(names)-1] != renamed {
			t.Errorf("%d events, names %+v", len(events), names)
		}
	}
}

// TestRingClock sets the wall clock twice: the recording starts with the one of its first event.
func TestRingClock(t *testing.T) {
	r := newRing(t, time.Second)
	at := info.StartBootNanos
	step := func(wall int64) {
		at += uint64(10 * time.Second)
		r.Write([]event.Event{{Type: event.ClockStep, BootNanos: at, BootWallNanos: wall}, {Type: event.Lost, BootNanos: at, LostCharges: 1}})
	}
	step(5)
	step(7)
	_, _, i, c := saved(t, r, at-1)
	if i.BootWallNanos != 7 || c.Lost != 1 {
		t.Errorf("%+v %+v", i, c)
	}
	if _, _, i, _ := saved(t, r, at+1); i.BootWallNanos != 7 {
		t.Errorf("%+v", i)
	}
}

// TestRingCounts counts what the kernel did not deliver since the first kept block.
func TestRingCounts(t *testing.T) {
	var counts stream.Counts
	r, err := NewRing(info, RingOptions{Keep: time.Minute, Memory: make([]byte, MinRingBytes), Counts: func() (stream.Counts, error) {
		counts.Filtered += 100
		counts.Missed += 10
		counts.LostStacks++
		return counts, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	charge := story(1)[storyNames:]
	for i := range 100 { // a block each
		charge[0].BootNanos = info.StartBootNanos + uint64(i)*uint64(2*time.Second)
		r.Write(charge)
	}
	_, _, _, c := saved(t, r, charge[0].BootNanos-uint64(10*time.Second))
	if want := (stream.Counts{Whole: true, Seen: 506, Filtered: 500, RecordedEvents: 6, RecordedCharges: 6, Missed: 50, LostStacks: 5}); c != want {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	r.Close(stream.Counts{Filtered: counts.Filtered + 1, Missed: counts.Missed, LostStacks: counts.LostStacks})
	if _, _, _, c := saved(t, r, charge[0].BootNanos-uint64(10*time.Second)); c.Filtered != 501 {
		t.Errorf("after Close %+v", c)
	}
}

// TestRingFirstUsage has the first usage of a new cgroup, which is of the time when the trace
// began, before the first event of that cgroup.
func TestRingFirstUsage(t *testing.T) {
	r := newRing(t, time.Minute)
	charge := story(1)[storyNames]
	charge.BootNanos = info.StartBootNanos + uint64(time.Hour)
	first := event.Event{Type: event.Usage, BootNanos: info.StartBootNanos, Cgroup: event.CgroupID{ID: 9}, Flags: event.Existing}
	r.Write([]event.Event{charge, first, charge})
	events, _, i, _ := saved(t, r, charge.BootNanos-1)
	if len(events) != 3 || events[1].Type != event.Usage || events[1].BootNanos >= charge.BootNanos || i.StartBootNanos != events[1].BootNanos {
		t.Errorf("%+v %+v", events, i)
	}
}

// TestRingLarge has a stack that needs more than the memory.
func TestRingLarge(t *testing.T) {
	r := newRing(t, time.Minute)
	charge := story(1)[storyNames]
	r.Write([]event.Event{charge})
	charge.KernelStack = 1
	frames := make([]byte, 2*MinRingBytes)
	for i := range frames {
		frames[i] = byte('a' + rand.IntN(26))
	}
	if err := r.Write([]event.Event{{Type: event.Stack, StackNumber: 1, Frames: string(frames)}, charge}); err != nil {
		t.Fatal(err)
	}
	charge.KernelStack = 0
	r.Write([]event.Event{charge})
	if events, _, _, _ := saved(t, r, 0); len(events) != 1 || events[0].KernelStack != 0 {
		t.Errorf("%+v", events)
	}
}
