package recorder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/trace"
)

// RotationOptions configure a Rotation.
type RotationOptions struct {
	// A recording ends when it has MaxBytes or after MaxAge; 0 is no limit.
	MaxBytes int64
	MaxAge   time.Duration
	// Memory holds the events that are not written yet.
	Memory []byte
	// Live writes the recordings on another goroutine than Write. Otherwise Write does, for a
	// replay that is faster than the disk.
	Live bool
	// Warn is called when writing fails, and when it goes on.
	Warn func(message string)
	// Folder limits the recordings. The last one is kept, however large it is.
	Folder FolderOptions
}

// Rotation is a [stream.Sink] that writes a trace to recordings, one after the other: for
// x.ctrace x-1.ctrace, x-2.ctrace and so on, after the last number there is.
//
//	Write -> trace.Ring -> trace.Tail -> file
//	                   (another goroutine)
//
// A disk that stalls or is full does not stop the trace: events wait in the Ring, and if that is
// full, the oldest are lost events in the recording.
type Rotation struct {
	o      RotationOptions
	folder *Folder
	names  partNames
	info   stream.Info
	ring   *trace.Ring

	wake, closing chan struct{}
	writer        sync.WaitGroup

	// For the goroutine that writes.
	create    func(name string) (partFile, error) // Folder.create, or a disk that fails in tests
	tail      *trace.Tail
	number    int64 // of the last file
	file      partFile
	name      string
	bytes     int64
	room      int64 // the bytes above which older recordings are removed
	begun     time.Time
	unwritten []byte // a piece
	failing   bool   // the last attempt to write failed
	err       error
}

// partFile is an [os.File].
type partFile interface {
	io.WriteSeeker
	io.Closer
	Truncate(size int64) error
	Sync() error
}

const (
	// syncInterval bounds the time between a write and its fsync(2).
	syncInterval = 5 * time.Second
	// retryInterval is the time between attempts to write to a disk that is full or fails.
	retryInterval = time.Second
	// maxDelay bounds the time between an event and its block in the file.
	maxDelay = time.Second
	// maxNumber is above the numbers that a trace can reach.
	maxNumber = 1e15
)

// partNames are the names of the parts of a trace.
type partNames struct {
	base, extension string
	pattern         *regexp.Regexp
}

func newPartNames(path string) partNames {
	extension := filepath.Ext(path)
	base := strings.TrimSuffix(filepath.Base(path), extension)
	return partNames{base, extension, regexp.MustCompile("^" + regexp.QuoteMeta(base) + "-([1-9][0-9]{0,17})" + regexp.QuoteMeta(extension) + "$")}
}

func (n partNames) name(number int64) string {
	return fmt.Sprintf("%s-%d%s", n.base, number, n.extension)
}

// number returns the number of a part, or 0 for another file.
func (n partNames) number(name string) (number int64) {
	if m := n.pattern.FindStringSubmatch(name); m != nil {
		number, _ = strconv.ParseInt(m[1], 10, 64)
	}
	return number
}

// order sorts the parts by their numbers.
func (n partNames) order(name string) (key string, ok bool) {
	number := n.number(name)
	return fmt.Sprintf("%019d", number), number > 0
}

// NewRotation creates the first file.
func NewRotation(path string, info stream.Info, o RotationOptions) (*Rotation, error) {
	return newRotation(path, info, o, func(f *Folder, name string) (partFile, error) { return f.create(name) })
}

func newRotation(path string, info stream.Info, o RotationOptions, create func(f *Folder, name string) (partFile, error)) (*Rotation, error) {
	r := &Rotation{o: o, names: newPartNames(path), info: info, wake: make(chan struct{}, 1), closing: make(chan struct{})}
	o.Folder.order = r.names.order
	delay := maxDelay
	if o.MaxAge > 0 {
		delay = min(delay, o.MaxAge)
	}
	var err error
	if r.folder, err = openFolder(filepath.Dir(path), o.Folder); err != nil {
		return nil, err
	}
	if r.ring, err = trace.NewRing(info, trace.RingOptions{Memory: o.Memory, MaxDelay: delay, Added: r.added}); err == nil {
		r.tail = r.ring.Tail()
		r.create = func(name string) (partFile, error) { return create(r.folder, name) }
		if r.number, err = r.last(); err == nil {
			err = r.begin()
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.folder.Close())
	}
	if o.Live {
		r.writer.Go(r.run)
	}
	return r, nil
}

// Path returns the path of the last file, before the first Write or after Close.
func (r *Rotation) Path() string { return r.folder.Path(r.name) }

// last returns the highest number of a part.
func (r *Rotation) last() (highest int64, err error) {
	entries, err := r.folder.entries()
	for _, e := range entries {
		if number := r.names.number(e.Name()); number < maxNumber {
			highest = max(highest, number)
		}
	}
	return highest, err
}

// Write implements [stream.Sink].
func (r *Rotation) Write(batch []event.Event) error {
	err := r.ring.Write(batch)
	if !r.o.Live {
		r.drain()
		err = errors.Join(err, r.err)
	}
	return err
}

// added wakes the goroutine that writes.
func (r *Rotation) added() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Close implements [stream.Sink]. It tries once more to write what is not written yet.
func (r *Rotation) Close(c stream.Counts) error {
	err := errors.Join(r.ring.Flush(), r.ring.Close(c))
	close(r.closing)
	r.writer.Wait()
	if r.err == nil {
		r.drain()
	}
	switch {
	case r.failing: // without an end, it is not taken for a whole recording
		r.err = errors.Join(fmt.Errorf("%s: the end of the trace could not be written", r.folder.Path(r.name)), r.close())
	case r.err != nil:
		r.err = errors.Join(r.err, r.close())
	case r.file != nil:
		r.err = r.finish(&c)
	}
	return errors.Join(err, r.err, r.folder.Close())
}

// close closes the file without an end.
func (r *Rotation) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// run writes blocks until the Rotation is closed.
func (r *Rotation) run() {
	var retry, sync <-chan time.Time
	for {
		select {
		case <-r.wake:
			if r.failing {
				continue // wait for the retry
			}
		case <-retry:
		case <-sync:
			sync = nil
			if r.file != nil {
				r.sync()
			}
			continue
		case <-r.closing:
			return
		}
		r.drain()
		retry = nil
		if r.failing {
			retry = time.After(retryInterval)
		}
		if sync == nil {
			sync = time.After(syncInterval)
		}
	}
}

// drain writes the pending blocks. After an error it keeps the rest for the next attempt.
func (r *Rotation) drain() {
	for r.err == nil && (r.unwritten != nil || r.tail.Pending()) {
		if err := r.writeNext(); err != nil {
			r.fail(err)
			return
		}
		if r.failing {
			r.failing = false
			r.o.Warn(fmt.Sprintf("writing to %s works again", r.folder.Path(r.name)))
		}
	}
}

// fail tells that writing failed, once. A replay ends then.
func (r *Rotation) fail(err error) {
	if !r.o.Live {
		r.err = err
		return
	}
	if !r.failing {
		r.failing = true
		r.o.Warn(fmt.Sprintf("%v: events wait in memory until it can be written", err))
	}
}

// writeNext writes the next block. If the disk is full, it removes the oldest recordings.
func (r *Rotation) writeNext() error {
	for {
		err := r.tryNext()
		if err == nil || !isFull(err) {
			return err
		}
		current := r.name
		if r.file == nil {
			current = ""
		}
		if _, dropErr := r.folder.dropForRoom(current); dropErr != nil {
			return errors.Join(err, dropErr)
		}
	}
}

// tryNext writes the next block, or one that could not be written before: that one is counted in
// the current file, which must not be finished before it.
func (r *Rotation) tryNext() error {
	if r.unwritten == nil || r.file == nil {
		err := r.rotate()
		if err == nil && r.unwritten == nil {
			r.unwritten, err = r.tail.Next()
		} else if err == nil {
			r.tail.Recount() // for the new file
		}
		if err != nil {
			return err
		}
	}
	err := r.append(r.unwritten)
	if err == nil {
		r.unwritten = nil
	}
	return err
}

// rotate ends the current file if it is time, and creates one if there is none.
func (r *Rotation) rotate() error {
	if r.file != nil && (r.o.MaxBytes > 0 && r.bytes >= r.o.MaxBytes || r.o.MaxAge > 0 && time.Since(r.begun) >= r.o.MaxAge) {
		if err := r.finish(nil); err != nil {
			return err
		}
	}
	if r.file != nil {
		return nil
	}
	return r.begin()
}

// begin begins the next recording. Files of others keep their names.
func (r *Rotation) begin() error {
	for taken := 0; ; taken++ {
		name := r.names.name(r.number + 1)
		file, err := r.create(name)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		r.number++
		if err == nil {
			r.file, r.name = file, name
			break
		}
		if taken == maxTaken {
			return err
		}
	}
	r.bytes, r.room, r.begun = 0, math.MaxInt64, time.Now()
	r.info.Saved = &stream.Saved{File: r.name}
	head, err := r.tail.Begin(r.info)
	if err == nil {
		err = r.append(head)
	}
	if err == nil { // an empty file after a crash is of no use, either
		err = errors.Join(r.file.Sync(), r.folder.sync())
	}
	if err != nil { // without its beginning, it is of no use
		err = errors.Join(err, r.file.Close(), r.folder.root.Remove(r.name))
		r.file = nil
		r.number--
		return err
	}
	r.dropOld()
	return nil
}

// append writes a piece to the file, or nothing of it.
func (r *Rotation) append(piece []byte) error {
	if _, err := r.file.Write(piece); err != nil {
		_, seekErr := r.file.Seek(r.bytes, 0)
		return errors.Join(err, r.file.Truncate(r.bytes), seekErr)
	}
	r.bytes += int64(len(piece))
	if r.bytes > r.room {
		r.dropOld()
	}
	return nil
}

// sync makes what is written durable. After an error of fsync(2) the kernel takes the lost pages
// for written, so that the file ends there.
func (r *Rotation) sync() {
	if err := r.file.Sync(); err != nil {
		r.o.Warn(fmt.Sprintf("%v: its last blocks can be lost", err))
		r.file.Close()
		r.file = nil
	}
}

// dropOld removes the oldest recordings beyond the limits, and computes how large the current one
// can become before the next attempt. If one cannot be removed, the trace goes on.
func (r *Rotation) dropOld() {
	left, err := r.folder.dropOld(r.name)
	limit := r.o.Folder.MaxBytes
	r.room = math.MaxInt64
	switch {
	case err != nil:
		r.o.Warn(fmt.Sprintf("older recordings are not removed: %v", err))
		r.room = r.bytes + limit/8
	case limit > 0 && left > r.bytes: // there are others
		r.room = r.bytes + max(0, limit-left)
	}
}

// finish ends the recording, the last one with the counts of the trace.
func (r *Rotation) finish(final *stream.Counts) error {
	piece, err := r.tail.End(final)
	if err == nil {
		err = r.append(piece)
	}
	if err != nil && final == nil {
		return err
	}
	err = errors.Join(err, r.file.Sync(), r.file.Close(), r.folder.sync())
	r.file = nil
	return err
}
