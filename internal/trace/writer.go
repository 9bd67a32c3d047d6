package trace

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// maxDelay bounds the time between an event and its block in the file.
const maxDelay = time.Second

// Writer is a [stream.Sink] that writes a recording. Only one goroutine may use it.
type Writer struct {
	w    io.Writer
	info stream.Info
	zstd *zstd.Encoder

	mu              sync.Mutex // the timer's goroutine writes blocks too
	timer           *time.Timer
	delay           time.Duration // maxDelay, but for tests that need the same blocks each time
	err             error         // of the timer's goroutine
	block           blockWriter
	bootWallNanos   int64  // of the events of the block
	events, charges uint64 // written so far
	bytes           int64
}

// NewWriter begins a recording.
func NewWriter(w io.Writer, info stream.Info) (*Writer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	wr := &Writer{w: w, info: info, zstd: enc, delay: maxDelay, block: newBlockWriter(), bootWallNanos: info.BootWallNanos}
	wr.timer = time.AfterFunc(time.Hour, wr.tick)
	wr.timer.Stop()
	head := binary.LittleEndian.AppendUint32([]byte(signature), Version)
	if _, err := w.Write(head); err != nil {
		return nil, err
	}
	wr.bytes = int64(len(head))
	payload, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return wr, wr.writeBlock(blockHeader{kind: kindMeta}, payload)
}

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
	for i := range batch {
		e := &batch[i]
		if e.Type.IsName() {
			// The events so far mean the old name.
			if w.block.redefines(e) {
				if err := w.flush(); err != nil {
					return err
				}
			}
			w.block.define(e)
			continue
		}
		if e.Type == event.ClockStep {
			if err := w.flush(); err != nil {
				return err
			}
			w.bootWallNanos = e.BootWallNanos
			continue
		}
		if w.block.events == 0 {
			w.timer.Reset(w.delay)
		}
		w.block.add(e)
		w.events++
		if e.Type == event.Charge {
			w.charges++
		}
		if w.block.full() {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return w.err
}

// tick writes the block when the timer fires.
func (w *Writer) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, w.flush())
}

// Close writes the last block of events, and the end with the counts. Of those,
// RecordedEvents and RecordedCharges are the Writer's own.
func (w *Writer) Close(c stream.Counts) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	if err := errors.Join(w.err, w.flush()); err != nil {
		return err
	}
	for len(w.block.renamed) > 0 {
		w.block.mentionRenamed()
		if err := w.writeEvents(); err != nil {
			return err
		}
	}
	c.RecordedEvents, c.RecordedCharges = w.events, w.charges
	payload, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return w.writeBlock(blockHeader{kind: kindEnd}, payload)
}

// flush writes the block of events.
func (w *Writer) flush() error {
	w.timer.Stop()
	if w.block.events == 0 {
		return nil
	}
	return w.writeEvents()
}

// writeEvents writes the block of events, even if it has only names.
func (w *Writer) writeEvents() error {
	h := blockHeader{kind: kindEvents, events: uint32(w.block.events), least: w.block.least, greatest: w.block.greatest, bootWallNanos: w.bootWallNanos}
	payload := w.block.payload()
	w.block.reset()
	return w.writeBlock(h, payload)
}

func (w *Writer) writeBlock(h blockHeader, payload []byte) error {
	buf := make([]byte, headerBytes, headerBytes+len(payload))
	buf = w.zstd.EncodeAll(payload, buf)
	stored := buf[headerBytes:]
	if len(payload) > maxPayload || len(stored) > maxPayload {
		return fmt.Errorf("block of %d bytes exceeds %d", len(payload), maxPayload)
	}
	h.stored, h.size = uint32(len(stored)), uint32(len(payload))
	h.append(buf[:0])
	h.checksum = checksum(buf, stored)
	h.append(buf[:0])
	n, err := w.w.Write(buf)
	w.bytes += int64(n)
	return err
}

// Next closes the recording and returns a Writer that continues it in another file, with
// the same Info, names, stacks and clock.
func (w *Writer) Next(out io.Writer) (*Writer, error) {
	// The last part has the counts.
	if err := w.Close(stream.Counts{}); err != nil {
		return nil, err
	}
	next, err := NewWriter(out, w.info)
	if err != nil {
		return nil, err
	}
	next.block.cgroups, next.block.frames, next.bootWallNanos = w.block.cgroups, w.block.frames, w.bootWallNanos
	return next, nil
}
