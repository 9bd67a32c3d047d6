// Package export writes a trace in forms that other programs read.
package export

import (
	"io"
	"strconv"
	"time"

	"chargetrace/internal/cause"
	"chargetrace/internal/cgroup"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// writer is what the forms have in common: a Sink that encodes events one by one
// and writes a batch at once.
type writer struct {
	w      io.Writer
	header stream.Info
	names  cgroup.Names
	stacks cause.Stacks
	buf    []byte
	// containers are those of the cgroups that were met.
	containers map[event.CgroupID]cgroup.Container
}

func newWriter(w io.Writer, header stream.Info) writer {
	return writer{w: w, header: header, containers: make(map[event.CgroupID]cgroup.Container)}
}

// write encodes a batch and writes it.
func (w *writer) write(batch []event.Event, encode func(e *event.Event)) error {
	for i := range batch {
		e := &batch[i]
		switch e.Type {
		case event.CgroupName:
			w.names.Add(e)
			delete(w.containers, e.Cgroup)
			continue
		case event.Stack:
			w.stacks.Add(e)
		}
		encode(e)
	}
	return w.flush()
}

func (w *writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

func (w *writer) container(id event.CgroupID) cgroup.Container {
	c, ok := w.containers[id]
	if !ok {
		c = cgroup.ContainerOf(w.names.Path(id))
		w.containers[id] = c
	}
	return c
}

// sinceStart is the time of an event since the trace began.
func (w *writer) sinceStart(e *event.Event) int64 {
	return int64(e.BootNanos - w.header.StartBootNanos)
}

// appendWallTime appends the time of day, in UTC, as in RFC 3339.
func (w *writer) appendWallTime(b []byte, e *event.Event) []byte {
	const layout = "2006-01-02T15:04:05.000000000Z07:00"
	return time.Unix(0, w.header.BootWallNanos+int64(e.BootNanos)).UTC().AppendFormat(b, layout)
}

// unit is what the numbers of a kind of counter count.
func unit(kind event.Kind) string {
	if kind == event.Dmem {
		return "bytes"
	}
	return "pages"
}

// flags in the order in which they are written.
var flags = []struct {
	name string
	has  func(e *event.Event) bool
}{
	{"remote", func(e *event.Event) bool { return e.Flags&event.Remote != 0 }},
	{"kernel_thread", func(e *event.Event) bool { return e.Flags&event.KernelThread != 0 }},
	{"idle", (*event.Event).Idle},
	{"predicted", func(e *event.Event) bool { return e.Flags&event.Predicted != 0 }},
	{"walk_cut", func(e *event.Event) bool { return e.Flags&event.WalkCut != 0 }},
	{"retry", func(e *event.Event) bool { return e.Flags&event.Retry != 0 }},
}

func appendUint(b []byte, n uint64) []byte { return strconv.AppendUint(b, n, 10) }
func appendInt(b []byte, n int64) []byte   { return strconv.AppendInt(b, n, 10) }
