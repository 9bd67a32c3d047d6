package trace

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// maxDelay bounds the time between an event and its block in the file.
const maxDelay = time.Second

// Writer is a [stream.Sink] that writes a recording. Only one goroutine may use it.
type Writer struct {
	w io.Writer

	mu              sync.Mutex // the timer's goroutine writes blocks too
	timer           *time.Timer
	delay           time.Duration // maxDelay, but for tests that need the same blocks each time
	err             error         // of the timer's goroutine
	encoder         encoder
	events, charges uint64 // written so far
	bytes           int64
}

// NewWriter begins a recording.
func NewWriter(w io.Writer, info stream.Info) (*Writer, error) {
	wr := &Writer{w: w, delay: maxDelay}
	if err := wr.encoder.init(info.BootWallNanos, wr.put); err != nil {
		return nil, err
	}
	wr.timer = time.AfterFunc(time.Hour, wr.tick)
	wr.timer.Stop()
	n, err := w.Write(fileHead())
	if err != nil {
		return nil, err
	}
	wr.bytes = int64(n)
	return wr, wr.encoder.putJSON(kindMeta, info)
}

// fileHead returns the bytes before the first block.
func fileHead() []byte { return binary.LittleEndian.AppendUint32([]byte(signature), Version) }

// Bytes is the number of bytes written so far.
func (w *Writer) Bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// Write adds events to the recording. They are in the file after a second.
func (w *Writer) Write(batch []event.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	block := &w.encoder.block
	for i := range batch {
		wasEmpty := block.events == 0
		if err := w.encoder.add(&batch[i]); err != nil {
			return err
		}
		if wasEmpty && block.events > 0 {
			w.timer.Reset(w.delay)
		}
	}
	return w.err
}

// tick writes the block when the timer fires.
func (w *Writer) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, w.encoder.flush())
}

// put writes a block to the file.
func (w *Writer) put(h *blockHeader, encoded []byte) error {
	w.timer.Stop()
	w.events += uint64(h.events)
	w.charges += w.encoder.charges
	n, err := w.w.Write(encoded)
	w.bytes += int64(n)
	return err
}

// Close writes the last block of events, and the end with the counts. Of those,
// RecordedEvents and RecordedCharges are the Writer's own.
func (w *Writer) Close(c stream.Counts) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if err := errors.Join(w.err, w.encoder.flush()); err != nil {
		return err
	}
	if err := w.encoder.putRenamed(); err != nil {
		return err
	}
	c.RecordedEvents, c.RecordedCharges = w.events, w.charges
	return w.encoder.putJSON(kindEnd, c)
}
