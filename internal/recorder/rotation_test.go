package recorder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// faultyFile is a file on a disk that fails, or stalls.
type faultyFile struct {
	partFile
	disk *faultyDisk
}

// faultyDisk makes faulty files.
type faultyDisk struct {
	fault atomic.Pointer[error] // nil: writing works
	stall chan struct{}         // nil: it does not stall
	syncs atomic.Int64
	// syncFault is an error of fsync.
	syncFault atomic.Pointer[error]
}

func (d *faultyDisk) fail(err error) { d.fault.Store(&err) }

func (d *faultyDisk) create(f *Folder, name string) (partFile, error) {
	file, err := f.create(name)
	return &faultyFile{file, d}, err
}

// Write writes half of the bytes before it fails.
func (f *faultyFile) Write(b []byte) (int, error) {
	if f.disk.stall != nil {
		<-f.disk.stall
	}
	if err := f.disk.fault.Load(); err != nil && *err != nil {
		n, _ := f.partFile.Write(b[:len(b)/2])
		return n, *err
	}
	return f.partFile.Write(b)
}

func (f *faultyFile) Sync() error {
	f.disk.syncs.Add(1)
	if err := f.disk.syncFault.Load(); err != nil {
		return *err
	}
	return f.partFile.Sync()
}

// rotationOptions are those of a live trace.
func rotationOptions(warnings *[]string) RotationOptions {
	o := RotationOptions{Memory: make([]byte, trace.MinRingBytes), Live: true}
	o.Warn = func(message string) { *warnings = append(*warnings, message) }
	o.Folder.Dropped = func(path string) { *warnings = append(*warnings, "dropped "+filepath.Base(path)) }
	return o
}

// parts plays the parts of x.ctrace in a directory together.
func parts(t *testing.T, dir string) (files []string, events []event.Event, c stream.Counts) {
	t.Helper()
	names := newPartNames("x.ctrace")
	for _, name := range list(t, dir) {
		if names.number(name) > 0 {
			files = append(files, name)
		}
	}
	slices.SortFunc(files, func(a, b string) int { return int(names.number(a) - names.number(b)) })
	var readers []*trace.Reader
	for _, name := range files {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := trace.NewReader(f, trace.Options{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	src, err := trace.NewSequence(readers...)
	if err != nil {
		t.Fatal(err)
	}
	for batch := make([]event.Event, 100); ; {
		n, err := src.Read(batch)
		for i := range batch[:n] {
			if !batch[i].Type.IsName() {
				events = append(events, batch[i])
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if c, err = src.Counts(); err != nil || !c.Whole || c.RecordedEvents != uint64(len(events)) {
		t.Errorf("%d events, %+v, %v", len(events), c, err)
	}
	return files, events, c
}

// write writes a charge each second, each in a batch of its own, and waits that second.
func write(t *testing.T, r *Rotation, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := r.Write([]event.Event{at(time.Duration(10+i)*time.Second, charge(9))}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
}

// check checks that all charges of write are in the parts.
func check(t *testing.T, dir string, n int, c stream.Counts) (files []string) {
	t.Helper()
	files, events, got := parts(t, dir)
	for i := range events {
		if want := uint64(10+i) * 1e9; events[i].BootNanos != want || events[i].Type != event.Charge {
			t.Errorf("event %d is %v at %d, want a charge at %d", i, events[i].Type, events[i].BootNanos, want)
		}
	}
	c.Whole, c.RecordedCharges, c.RecordedEvents = true, uint64(n), uint64(n)
	if len(events) != n || got != c {
		t.Errorf("%d events, want %d\ngot  %+v\nwant %+v", len(events), n, got, c)
	}
	return files
}

// TestRotation begins a file every 10 s. Other files already have some of the names. fsync(2) follows
// each write within some seconds.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range []string{"x-4.ctrace", "x-7.ctrace", "y-9.ctrace", "x-12.html"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("other"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var warnings []string
		o := rotationOptions(&warnings)
		o.MaxAge = 10 * time.Second
		disk := new(faultyDisk)
		r, err := newRotation(filepath.Join(dir, "x.ctrace"), info, o, disk.create)
		if err != nil {
			t.Fatal(err)
		}
		r.Write(names())
		write(t, r, 0, 12)
		os.WriteFile(filepath.Join(dir, "x-10.ctrace"), []byte("other"), 0o600) // while it runs
		write(t, r, 12, 45)
		if disk.syncs.Load() < 7 {
			t.Errorf("%d syncs in 45 s", disk.syncs.Load())
		}
		counts := stream.Counts{Seen: 52, Filtered: 7, Missed: 3, BatchPages: 64}
		if err := r.Close(counts); err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"x-4.ctrace", "x-7.ctrace", "x-10.ctrace"} {
			if err := os.Remove(filepath.Join(dir, other)); err != nil {
				t.Error(err)
			}
		}
		files := check(t, dir, 45, counts)
		if want := []string{"x-8.ctrace", "x-9.ctrace", "x-11.ctrace", "x-12.ctrace", "x-13.ctrace"}; !slices.Equal(files, want) || len(warnings) > 0 {
			t.Errorf("files %q, warnings %q", files, warnings)
		}
	})
}

// TestRotationFull has a full disk: the oldest recordings make room. Then nothing makes room, and
// events wait until something else does.
func TestRotationFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var warnings []string
		o := rotationOptions(&warnings)
		o.MaxAge = 10 * time.Second
		disk := new(faultyDisk)
		dropped := o.Folder.Dropped
		o.Folder.Dropped = func(path string) {
			dropped(path)
			disk.fail(nil) // there is room again
		}
		r, err := newRotation(filepath.Join(dir, "x.ctrace"), info, o, disk.create)
		if err != nil {
			t.Fatal(err)
		}
		write(t, r, 0, 25)
		disk.fail(syscall.ENOSPC)
		write(t, r, 25, 26)
		if want := []string{"dropped x-1.ctrace"}; !slices.Equal(warnings, want) {
			t.Errorf("%q", warnings)
		}
		// A file cannot be begun, nor the last one be dropped.
		os.Remove(filepath.Join(dir, "x-2.ctrace"))
		disk.fail(fmt.Errorf("write: %w", syscall.ENOSPC))
		write(t, r, 26, 45)
		disk.fail(nil)
		write(t, r, 45, 50)
		if err := r.Close(stream.Counts{Seen: 50}); err != nil {
			t.Fatal(err)
		}
		if len(warnings) != 3 || !strings.Contains(warnings[1], errNothingToDrop.Error()) || !strings.HasSuffix(warnings[1], ": events wait in memory until it can be written") ||
			!strings.HasSuffix(warnings[2], "/x-3.ctrace works again") {
			t.Errorf("%q", warnings)
		}
		files, events, _ := parts(t, dir)
		if len(files) != 2 || len(events) != 50-19 || events[0].BootNanos != 29e9 {
			t.Errorf("files %q, %d events", files, len(events))
		}
	})
}

// TestRotationRetries has blocks more often than it tries a disk that failed.
func TestRotationRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var warnings []string
		disk := new(faultyDisk)
		dir := t.TempDir()
		r, err := newRotation(filepath.Join(dir, "x.ctrace"), info, rotationOptions(&warnings), disk.create)
		if err != nil {
			t.Fatal(err)
		}
		disk.fail(syscall.EIO)
		const n = 100
		for i := range n {
			if i == n/2 {
				disk.fail(nil)
			}
			if err := errors.Join(r.Write([]event.Event{at(time.Duration(10+i)*time.Second, charge(9))}), r.ring.Flush()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		if len(warnings) != 2 {
			t.Errorf("%q", warnings)
		}
		if err := r.Close(stream.Counts{Seen: n}); err != nil {
			t.Fatal(err)
		}
		check(t, dir, n, stream.Counts{Seen: n})
	})
}

// TestRotationSync has an fsync that fails: the file ends, and the trace goes on in another.
func TestRotationSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var warnings []string
		disk := new(faultyDisk)
		dir := t.TempDir()
		r, err := newRotation(filepath.Join(dir, "x.ctrace"), info, rotationOptions(&warnings), disk.create)
		if err != nil {
			t.Fatal(err)
		}
		write(t, r, 0, 3)
		before := disk.syncs.Load()
		failure := error(syscall.EIO)
		disk.syncFault.Store(&failure)
		time.Sleep(syncInterval) // without another event
		synctest.Wait()
		if disk.syncs.Load() == before || len(warnings) != 1 || !strings.Contains(warnings[0], "its last blocks can be lost") {
			t.Errorf("%d syncs before, %d after, warnings %q", before, disk.syncs.Load(), warnings)
		}
		disk.syncFault.Store(nil)
		write(t, r, 3, 5)
		if err := r.Close(stream.Counts{Seen: 5}); err != nil {
			t.Fatal(err)
		}
		if files := list(t, dir); !slices.Equal(files, []string{"x-1.ctrace", "x-2.ctrace"}) {
			t.Errorf("%q", files)
		}
		os.Remove(filepath.Join(dir, "x-1.ctrace")) // it has no end
		if _, events, _ := parts(t, dir); len(events) != 2 || events[0].BootNanos != 13e9 {
			t.Errorf("%d events", len(events))
		}
	})
}

// TestRotationStalled has a disk that stalls while more than the memory is written. Write does not
// wait. What did not fit is lost in the recording, and counted.
func TestRotationStalled(t *testing.T) {
	dir := t.TempDir()
	var warnings []string
	disk := &faultyDisk{stall: make(chan struct{}, 1)}
	disk.stall <- struct{}{} // for the beginning
	r, err := newRotation(filepath.Join(dir, "x.ctrace"), info, rotationOptions(&warnings), disk.create)
	if err != nil {
		t.Fatal(err)
	}
	const n, batches = 1000, 500
	batch := make([]event.Event, n)
	for i := range batches {
		for j := range batch {
			batch[j] = at(time.Duration(i)*time.Second+time.Duration(j), charge(9))
			batch[j].StackPointer = uint64(i*n+j) * 0x9e3779b97f4a7c15
		}
		if err := r.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	close(disk.stall)
	if err := r.Close(stream.Counts{Seen: n * batches}); err != nil {
		t.Fatal(err)
	}
	_, events, c := parts(t, dir)
	lost := uint64(0)
	for i := range events {
		if events[i].Type == event.Lost {
			lost += events[i].LostCharges
		}
	}
	if lost == 0 || c.Lost != lost || c.RecordedCharges+lost != n*batches || c.Seen != n*batches || len(events) < n {
		t.Errorf("%d events, %d lost: %+v", len(events), lost, c)
	}
}

// TestRotationKeepsWriting cannot remove older recordings: it says so, and writes each block once.
func TestRotationKeepsWriting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var warnings []string
		o := rotationOptions(&warnings)
		earlier, err := NewRotation(filepath.Join(dir, "x.ctrace"), info, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := earlier.Close(stream.Counts{}); err != nil {
			t.Fatal(err)
		}
		o.Folder.MaxBytes = 1500
		r, err := NewRotation(filepath.Join(dir, "x.ctrace"), info, o)
		if err != nil {
			t.Fatal(err)
		}
		r.folder.root.Close()
		write(t, r, 0, 20)
		if err := r.Close(stream.Counts{Seen: 20}); err == nil {
			t.Error("the folder is closed, but there is no error")
		}
		if len(warnings) == 0 || !strings.HasPrefix(warnings[0], "older recordings are not removed: ") {
			t.Errorf("%q", warnings)
		}
		check(t, dir, 20, stream.Counts{Seen: 20})
	})
}

// TestRotationFails has a disk that fails until the end: Close says so. A replay ends at once.
func TestRotationFails(t *testing.T) {
	for _, live := range []bool{true, false} {
		var warnings []string
		disk := new(faultyDisk)
		o := rotationOptions(&warnings)
		o.Live = live
		dir := t.TempDir()
		r, err := newRotation(filepath.Join(dir, "x.ctrace"), info, o, disk.create)
		if err != nil {
			t.Fatal(err)
		}
		disk.fail(syscall.EIO)
		r.Write([]event.Event{charge(9)})
		err = r.Write([]event.Event{at(time.Hour, charge(9))})
		if !live && !errors.Is(err, syscall.EIO) {
			t.Errorf("write: %v", err)
		}
		if err := r.Close(stream.Counts{}); err == nil {
			t.Error("no error at the end")
		}
		if f, err := os.Open(filepath.Join(dir, "x-1.ctrace")); err != nil {
			t.Error(err)
		} else if _, err := trace.NewReader(f, trace.Options{}); err != nil {
			t.Errorf("the file: %v", err)
		}
	}
}
