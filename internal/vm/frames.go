//go:build linux

package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// The kinds of frames from the guest.
const (
	frameStdout = 1
	frameStderr = 2
	frameExit   = 3 // the exit status as 4 bytes
)

// A frame consists of its kind, the length of its payload as 4 bytes, little-endian, and
// the payload.
const frameHeader = 5

// readFrame reads the header of a frame.
func readFrame(r io.Reader) (kind byte, size int64, err error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if err == io.EOF {
			err = errors.New("the machine stopped before the command did")
		}
		return 0, 0, err
	}
	return header[0], int64(binary.LittleEndian.Uint32(header[1:])), nil
}

// readFrames copies the guest's output until its exit status arrives.
func readFrames(r io.Reader, stdout, stderr io.Writer) (status int, err error) {
	for {
		kind, size, err := readFrame(r)
		if err != nil {
			return 0, err
		}
		switch kind {
		case frameStdout:
			_, err = io.CopyN(stdout, r, size)
		case frameStderr:
			_, err = io.CopyN(stderr, r, size)
		case frameExit:
			var payload [4]byte
			if _, err := io.ReadFull(r, payload[:]); err != nil {
				return 0, err
			}
			return int(binary.LittleEndian.Uint32(payload[:])), nil
		default:
			return 0, fmt.Errorf("frame of unknown kind %d", kind)
		}
		if err != nil {
			return 0, err
		}
	}
}

// frameWriter sends frames. Its methods can be called concurrently.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) write(kind byte, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	frame := append(make([]byte, 0, frameHeader+len(payload)), kind)
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(payload)))
	_, err := f.w.Write(append(frame, payload...))
	return err
}

// stream returns a Writer that sends each Write as a frame of a kind.
func (f *frameWriter) stream(kind byte) io.Writer { return frameStream{f, kind} }

type frameStream struct {
	frames *frameWriter
	kind   byte
}

func (s frameStream) Write(p []byte) (int, error) {
	if err := s.frames.write(s.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
