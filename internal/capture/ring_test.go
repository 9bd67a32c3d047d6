//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeProducer writes into a ring buffer as the kernel does.
type fakeProducer struct {
	*ringBuffer
	data     []byte // once; the reader's data are mapped twice
	wakeup   int    // an eventfd
	position uint64
}

func newFakeProducer(t *testing.T, size int) *fakeProducer {
	t.Helper()
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	// Like the kernel's memory: one file, mapped twice.
	file, err := unix.MemfdCreate("ring", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	if err := unix.Ftruncate(file, int64(size)); err != nil {
		t.Fatal(err)
	}
	reserved, err := unix.MmapPtr(-1, 0, nil, uintptr(2*size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if _, err := unix.MmapPtr(file, 0, unsafe.Add(reserved, i*size), uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			t.Fatal(err)
		}
	}
	data := unsafe.Slice((*byte)(reserved), 2*size)
	p := &fakeProducer{ringBuffer: &ringBuffer{epoll: -1, flushed: -1}, data: data, wakeup: wakeup}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
		unix.Close(wakeup)
		if err := unix.MunmapPtr(reserved, uintptr(2*size)); err != nil {
			t.Error(err)
		}
	})
	if err := p.init(wakeup, make([]byte, 8), make([]byte, 8), data); err != nil {
		t.Fatal(err)
	}
	return p
}

// add reserves a sample, and returns its header and the bytes after it.
func (p *fakeProducer) add(flags uint32, sample string) *atomic.Uint32 {
	at := p.data[p.position&p.mask:]
	header := (*atomic.Uint32)(unsafe.Pointer(&at[0]))
	header.Store(uint32(len(sample)) | flags)
	copy(at[sampleHeader:], sample)
	p.position += uint64(sampleHeader + (len(sample)+7)&^7)
	p.producer.Store(p.position)
	return header
}

func (p *fakeProducer) wake(t *testing.T) {
	t.Helper()
	if _, err := unix.Write(p.wakeup, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		t.Error(err)
	}
}

func (p *fakeProducer) want(t *testing.T, want string) {
	t.Helper()
	if got, err := p.next(); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

// TestRingBuffer fills a small buffer many times with samples of different lengths. All must
// come out, and the memory of one is free only after the following call.
func TestRingBuffer(t *testing.T) {
	const size = 4096
	p := newFakeProducer(t, size)
	type sample struct {
		position uint64
		text     string
	}
	var sent []sample
	for i := range 5000 {
		if i%5 == 0 {
			p.add(sampleDiscarded, "dropped")
		}
		s := sample{p.position, strings.Repeat(string(rune('a'+i%26)), 1+i*7%400)}
		p.add(0, s.text)
		sent = append(sent, s)
		for p.position-p.consumer.Load() > size-500 {
			p.want(t, sent[0].text)
			if free := p.consumer.Load(); free > sent[0].position {
				t.Fatalf("the sample at %d is free up to %d", sent[0].position, free)
			}
			sent = sent[1:]
		}
	}
	for _, s := range sent {
		if !p.available() {
			t.Fatal("nothing is available")
		}
		p.want(t, s.text)
	}
	if p.available() || p.consumer.Load() != p.position {
		t.Errorf("at %d of %d", p.consumer.Load(), p.position)
	}
}

// TestRingWaits waits for a wakeup, a deadline and flush. Samples that nobody announced come
// before the error.
func TestRingWaits(t *testing.T) {
	p := newFakeProducer(t, 4096)
	deadline := func(d time.Duration) { p.setDeadline(time.Now().Add(d)) }
	fails := func(want error) {
		t.Helper()
		if got, err := p.next(); err != want {
			t.Fatalf("got %q, %v; want %v", got, err, want)
		}
	}
	deadline(-time.Hour)
	fails(os.ErrDeadlineExceeded)
	begin := time.Now()
	deadline(3 * time.Millisecond)
	fails(os.ErrDeadlineExceeded)
	if d := time.Since(begin); d < 3*time.Millisecond {
		t.Errorf("the deadline passed after %v", d)
	}

	p.setDeadline(time.Time{})
	var waking sync.WaitGroup
	waking.Go(func() {
		p.add(0, "woken")
		p.wake(t)
	})
	p.want(t, "woken")
	waking.Wait()
	var wakeups [8]byte
	if _, err := unix.Read(p.wakeup, wakeups[:]); err != nil { // as the kernel once the buffer is empty
		t.Fatal(err)
	}

	// The samples come before the deadline's error.
	deadline(-time.Hour)
	p.add(0, "first")
	p.add(0, "second")
	p.want(t, "first")
	p.want(t, "second")
	fails(os.ErrDeadlineExceeded)

	// What no program announced comes before the error, too.
	p.setDeadline(time.Time{})
	var flushing sync.WaitGroup
	flushing.Go(func() {
		p.add(0, "last")
		if err := p.flush(); err != nil {
			t.Error(err)
		}
	})
	p.want(t, "last")
	fails(errFlushed)
	fails(errFlushed)
	flushing.Wait()
}

// TestRingBusy reads a sample that a program has reserved, but not written yet.
func TestRingBusy(t *testing.T) {
	p := newFakeProducer(t, 4096)
	header := p.add(sampleBusy, "unwritten")
	go func() {
		copy(p.data[sampleHeader:], "committed")
		header.Store(uint32(len("committed")))
	}()
	p.want(t, "committed")
	discarded := p.add(sampleBusy, "dropped")
	p.add(0, "next")
	go discarded.Store(uint32(len("dropped")) | sampleDiscarded)
	p.want(t, "next")
}

// TestRingCorrupt reads samples that are longer than what has been reserved.
func TestRingCorrupt(t *testing.T) {
	for _, flags := range []uint32{0, sampleDiscarded} {
		p := newFakeProducer(t, 4096)
		p.add(flags, "12345678").Store(flags | 9)
		for range 2 {
			if got, err := p.next(); err == nil || err.Error() != "a sample of 9 bytes, with its header in 16" {
				t.Errorf("%x: %q, %v", flags, got, err)
			}
		}
	}
}

// TestRingFails maps what is no ring buffer.
func TestRingFails(t *testing.T) {
	file, err := unix.MemfdCreate("ring", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	size := os.Getpagesize()
	if err := unix.Ftruncate(file, int64(4*size)); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	// A memfd can be mapped, but not waited for.
	r, err := newRingBuffer(file, size)
	if !errors.Is(err, unix.EPERM) || !strings.HasPrefix(err.Error(), "map the ring buffer: ") {
		t.Error(err)
	}
	if len(r.mapped) != 0 {
		t.Errorf("%d mappings are left", len(r.mapped))
	}
	if after := openFiles(t); !slices.Equal(after, before) {
		t.Errorf("files %v are open, %v before", after, before)
	}
}

// openFiles returns the numbers of this process's files, without the one that lists them.
func openFiles(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := os.Stat("/proc/self/fd/" + e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names
}
