package trace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
)

// blockFile reads the blocks of a recording, which may still grow.
type blockFile struct {
	r       *bufio.Reader
	seeker  io.Seeker // nil for a pipe
	follow  bool      // wait at the end for more
	stopped atomic.Bool
	zstd    *zstd.Decoder

	header  [headerBytes]byte // of the last block, as in the file
	stored  []byte            // its payload, as in the file
	payload []byte            // and decompressed
}

// open prepares to read r.
func (f *blockFile) open(r io.Reader, follow bool) (err error) {
	f.follow = follow
	if seeker, ok := r.(io.Seeker); ok {
		if _, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			f.seeker = seeker
		}
	}
	f.r = bufio.NewReaderSize(r, 64<<10)
	f.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPayload), zstd.WithDecoderLowmem(true))
	return err
}

// readVersion reads the beginning of the file and returns the version of the format.
func (f *blockFile) readVersion() (uint32, error) {
	var head [len(signature) + 4]byte
	if err := f.readFull(head[:]); err != nil {
		return 0, fmt.Errorf("not a recording of chargetrace: %w", err)
	}
	if string(head[:len(signature)]) != signature {
		return 0, errors.New("not a recording of chargetrace")
	}
	v := binary.LittleEndian.Uint32(head[len(signature):])
	if v == 0 || v > Version {
		return 0, fmt.Errorf("format version %d is not supported: this program reads versions 1 to %d", v, Version)
	}
	return v, nil
}

func (f *blockFile) readHeader() (h blockHeader, err error) {
	if err := f.readFull(f.header[:]); err != nil {
		return h, err
	}
	return h, h.parse(f.header[:])
}

// readPayload reads the payload after h, the last header read. It stays valid until the
// next call. After errDamaged the next header can be read.
func (f *blockFile) readPayload(h *blockHeader) ([]byte, error) {
	if cap(f.stored) < int(h.stored) {
		f.stored = make([]byte, h.stored)
	}
	f.stored = f.stored[:h.stored]
	if err := f.readFull(f.stored); err != nil {
		return nil, err
	}
	if checksum(f.header[:], f.stored) != h.checksum {
		return nil, errDamaged
	}
	var err error
	f.payload, err = f.zstd.DecodeAll(f.stored, f.payload[:0])
	if err != nil || len(f.payload) != int(h.size) {
		return nil, errors.Join(errDamaged, err)
	}
	return f.payload, nil
}

// skip skips n bytes, by seeking if possible.
func (f *blockFile) skip(n int) error {
	buffered := f.r.Buffered()
	// A seek past the end succeeds, so that a growing file has to be read.
	if f.seeker != nil && n > buffered && !f.follow {
		f.r.Discard(buffered)
		_, err := f.seeker.Seek(int64(n-buffered), io.SeekCurrent)
		return err
	}
	for {
		skipped, err := f.r.Discard(n)
		n -= skipped
		if n == 0 || !f.wait(err) {
			return err
		}
	}
}

func (f *blockFile) readFull(b []byte) error {
	for {
		n, err := io.ReadFull(f.r, b)
		b = b[n:]
		if len(b) == 0 || !f.wait(err) {
			return err
		}
	}
}

// pollInterval is the time between reads at the end of a growing file.
const pollInterval = 100 * time.Millisecond

// wait waits for a growing file if err says that it ended. It returns false if reading
// failed with err.
func (f *blockFile) wait(err error) bool {
	if !f.follow || f.stopped.Load() || err != io.EOF && err != io.ErrUnexpectedEOF {
		return false
	}
	time.Sleep(pollInterval)
	return true
}
