package trace

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	"chargetrace/internal/event"
)

// encoder encodes events into blocks.
type encoder struct {
	zstd  *zstd.Encoder
	block blockWriter
	// bootWallNanos is that of the events of the block.
	bootWallNanos int64
	charges, lost uint64 // in the block
	// put stores a block: its header and payload as in a file, which are valid until put returns.
	put func(h *blockHeader, encoded []byte) error
	buf []byte
}

func (enc *encoder) init(bootWallNanos int64, put func(*blockHeader, []byte) error) (err error) {
	enc.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	enc.block, enc.bootWallNanos, enc.put = newBlockWriter(), bootWallNanos, put
	return err
}

// add adds an event, and puts the block first or afterwards if it has to end there.
func (enc *encoder) add(e *event.Event) error {
	switch {
	case e.Type == event.CgroupReleased:
		enc.block.release(e.Cgroup)
		return nil
	case e.Type.IsName():
		// The events so far mean the old name.
		if enc.block.redefines(e) {
			if err := enc.flush(); err != nil {
				return err
			}
		}
		enc.block.define(e)
		return nil
	case e.Type == event.ClockStep:
		err := enc.flush()
		enc.bootWallNanos = e.BootWallNanos
		return err
	}
	enc.block.add(e)
	switch e.Type {
	case event.Charge:
		enc.charges++
	case event.Lost:
		enc.lost += e.LostCharges
	}
	if enc.block.full() {
		return enc.flush()
	}
	return nil
}

// flush puts the block, unless it is empty.
func (enc *encoder) flush() error {
	if enc.block.events == 0 {
		return nil
	}
	return enc.putEvents()
}

// putEvents puts the block, even if it has only names.
func (enc *encoder) putEvents() error {
	b := &enc.block
	h := blockHeader{kind: kindEvents, events: uint32(b.events), least: b.least, greatest: b.greatest, bootWallNanos: enc.bootWallNanos}
	payload := b.payload()
	b.reset()
	err := enc.putBlock(&h, payload)
	enc.charges, enc.lost = 0, 0
	return err
}

// putRenamed puts the names of cgroups that have had another name in the blocks so far.
func (enc *encoder) putRenamed() error {
	for len(enc.block.renamed) > 0 {
		enc.block.mentionRenamed()
		if err := enc.putEvents(); err != nil {
			return err
		}
	}
	return nil
}

// putJSON puts a block with an object.
func (enc *encoder) putJSON(kind uint32, object any) error {
	payload, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return enc.putBlock(&blockHeader{kind: kind}, payload)
}

func (enc *encoder) putBlock(h *blockHeader, payload []byte) error {
	enc.buf = slices.Grow(enc.buf[:0], headerBytes+len(payload))
	enc.buf = enc.zstd.EncodeAll(payload, enc.buf[:headerBytes])
	stored := enc.buf[headerBytes:]
	if len(payload) > maxPayload || len(stored) > maxPayload {
		return fmt.Errorf("block of %d bytes exceeds %d", len(payload), maxPayload)
	}
	h.stored, h.size = uint32(len(stored)), uint32(len(payload))
	h.append(enc.buf[:0])
	h.checksum = checksum(enc.buf, stored)
	h.append(enc.buf[:0])
	return enc.put(h, enc.buf)
}
