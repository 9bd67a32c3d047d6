//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is the reader's interface to the ring buffer: a [*ringBuffer], or a script in tests.
type ring interface {
	// next waits for a sample. The sample is valid until the following call. After flush
	// it returns the remaining samples, then errFlushed.
	next() ([]byte, error)
	// available reports whether next has a sample without waiting for a program to begin one.
	available() bool
	// setDeadline limits the wait of next, which then fails with os.ErrDeadlineExceeded.
	// The zero time is no limit.
	setDeadline(time.Time)
	flush() error
}

var errFlushed = errors.New("the ring buffer has been flushed")

// ringBuffer reads a BPF ring buffer, as kernel/bpf/ringbuf.c lays it out: a page with the
// consumer's position, a page with the producers', and the samples, which are mapped twice
// in a row so that none is cut at the end. Each sample has a header of 8 bytes and is
// padded to 8 bytes.
//
// The library's reader copies each sample and takes a lock for it, which costs as much as
// the rest of reading an event. Only one goroutine may use a ringBuffer, except for flush.
type ringBuffer struct {
	consumer, producer *atomic.Uint64
	data               []byte // twice
	mask               uint64

	// position is that of the last sample, and length its length with header and padding.
	position, length uint64
	end              uint64 // the producers' position when it was last read
	deadline         time.Time
	err              error // to be returned once no sample is left

	epoll, flushed int // file descriptors
	mapped         [][]byte
}

const (
	sampleHeader = 8 // struct bpf_ringbuf_hdr
	// The flags of include/uapi/linux/bpf.h in the length of a sample.
	sampleBusy      = 1 << 31
	sampleDiscarded = 1 << 30
)

// newRingBuffer maps the ring buffer of a size in bytes. Its mappings keep the file open, and
// so keep it in the epoll set when fd is closed.
func newRingBuffer(fd, size int) (r *ringBuffer, err error) {
	r = &ringBuffer{epoll: -1, flushed: -1}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("map the ring buffer: %w", err), r.close())
		}
	}()
	page := os.Getpagesize()
	consumer, err := r.mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return r, err
	}
	producer, err := r.mmap(fd, int64(page), page+2*size, unix.PROT_READ)
	if err != nil {
		return r, err
	}
	return r, r.init(fd, consumer, producer[:page], producer[page:])
}

func (r *ringBuffer) mmap(fd int, offset int64, length, protection int) ([]byte, error) {
	b, err := unix.Mmap(fd, offset, length, protection, unix.MAP_SHARED)
	if err == nil {
		r.mapped = append(r.mapped, b)
	}
	return b, err
}

// init sets the memory of a ring buffer, and the file that becomes readable when a program
// wakes the reader.
func (r *ringBuffer) init(fd int, consumer, producer, data []byte) (err error) {
	r.consumer = (*atomic.Uint64)(unsafe.Pointer(&consumer[0]))
	r.producer = (*atomic.Uint64)(unsafe.Pointer(&producer[0]))
	r.data, r.mask = data, uint64(len(data)/2-1)
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if r.flushed, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	for _, fd := range []int{fd, r.flushed} {
		if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return err
		}
	}
	return nil
}

func (r *ringBuffer) next() ([]byte, error) {
	for {
		if r.available() {
			return r.sample()
		}
		if err := r.err; err != nil {
			r.err = nil
			return nil, err
		}
		// Without a wakeup there can be samples too.
		if r.err = r.wait(); r.err != nil && r.err != errFlushed && r.err != os.ErrDeadlineExceeded {
			return nil, r.err
		}
	}
}

// sample returns the sample at the position.
func (r *ringBuffer) sample() ([]byte, error) {
	start := r.position&r.mask + sampleHeader
	n := uint64(r.header() &^ (sampleBusy | sampleDiscarded))
	length := sampleHeader + (n+7)&^7
	if left := r.end - r.position; length > left {
		return nil, fmt.Errorf("a sample of %d bytes, with its header in %d", n, left)
	}
	r.length = length
	return r.data[start : start+n : start+n], nil
}

// header returns the length and the flags of the sample at the position.
func (r *ringBuffer) header() uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&r.data[r.position&r.mask])).Load()
}

// available moves to the next sample, and frees the memory of the last one. Samples are in
// the order of their reservation: it waits for one that a program is writing.
func (r *ringBuffer) available() bool {
	for {
		if r.length > 0 {
			r.position += r.length
			r.length = 0
			r.consumer.Store(r.position)
		}
		if r.position == r.end {
			if r.end = r.producer.Load(); r.position == r.end {
				return false
			}
		}
		for r.header()&sampleBusy != 0 {
			time.Sleep(10 * time.Microsecond) // the program may need this CPU
		}
		if r.header()&sampleDiscarded == 0 {
			return true
		}
		if _, err := r.sample(); err != nil {
			return true // next returns the error
		}
	}
}

// wait waits for a wakeup, the deadline, or flush.
func (r *ringBuffer) wait() error {
	for {
		timeout := -1
		if !r.deadline.IsZero() {
			// Rounded up, so that the deadline has passed afterwards.
			timeout = int(max(0, time.Until(r.deadline)+time.Millisecond-1) / time.Millisecond)
		}
		var events [2]unix.EpollEvent
		n, err := unix.EpollWait(r.epoll, events[:], timeout)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return os.ErrDeadlineExceeded
		}
		for _, e := range events[:n] {
			if e.Fd == int32(r.flushed) {
				return errFlushed
			}
		}
		return nil
	}
}

func (r *ringBuffer) setDeadline(t time.Time) { r.deadline = t }

func (r *ringBuffer) flush() error {
	_, err := unix.Write(r.flushed, binary.NativeEndian.AppendUint64(nil, 1))
	return err
}

// close unmaps the ring buffer. No sample may be used after it.
func (r *ringBuffer) close() error {
	var errs []error
	for _, b := range r.mapped {
		errs = append(errs, unix.Munmap(b))
	}
	for _, fd := range []int{r.epoll, r.flushed} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	r.mapped, r.epoll, r.flushed = nil, -1, -1
	return errors.Join(errs...)
}
