//go:build linux

package capture

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/symbol"
	"chargetrace/internal/trace"
)

// rawTrace is everything that a reader got from the kernel in a trace, enough to read it
// again without the kernel. Its file, NAME.raw, is compressed with zstd: a line of JSON,
// then the samples, each preceded by its length (a uvarint). Samples have the byte order
// and the layout of the machine, which the tested machines share.
type rawTrace struct {
	Header rawHeader
	// EndBootNanos is the time of the end and of the last losses.
	EndBootNanos uint64
	// Counters are the counters of each possible CPU.
	Counters   []rawCounters
	Unfollowed uint64
	Missed     uint64

	// Samples are the records of the ring buffer.
	Samples [][]byte `json:"-"`
}

// rawHeader is the part of a [stream.Info] that belongs to the events.
type rawHeader struct {
	PageSize                      int
	StartBootNanos                uint64
	BootWallNanos                 int64
	KernelStacks, UserStacks, Net bool
}

func (h rawHeader) info() stream.Info {
	return stream.Info{
		PageSize: h.PageSize, StartBootNanos: h.StartBootNanos, BootWallNanos: h.BootWallNanos,
		KernelStacks: h.KernelStacks, UserStacks: h.UserStacks, Net: h.Net,
	}
}

type rawCounters struct{ Delivered, Filtered, Lost, LostOthers, LostStacks, Missed, Inflight uint64 }

func writeRaw(w io.Writer, raw *rawTrace) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	b, err := json.Marshal(raw)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	for _, sample := range raw.Samples {
		b = binary.AppendUvarint(b, uint64(len(sample)))
		b = append(b, sample...)
	}
	_, err = z.Write(b)
	return errors.Join(err, z.Close())
}

func readRaw(r io.Reader) (*rawTrace, error) {
	z, err := zstd.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b := bufio.NewReader(z)
	line, err := b.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	raw := new(rawTrace)
	if err := json.Unmarshal(line, raw); err != nil {
		return nil, err
	}
	for {
		size, err := binary.ReadUvarint(b)
		if err == io.EOF {
			return raw, nil
		}
		if err != nil || size > 1<<16 {
			return nil, fmt.Errorf("sample %d of %d bytes: %w", len(raw.Samples), size, err)
		}
		sample := make([]byte, size)
		if _, err := io.ReadFull(b, sample); err != nil {
			return nil, fmt.Errorf("sample %d: %w", len(raw.Samples), err)
		}
		raw.Samples = append(raw.Samples, sample)
	}
}

// rawRecorder wraps the kernel for a reader, and stores everything the reader gets.
type rawRecorder struct {
	ring
	kernel
	reader *reader
	raw    rawTrace
}

// recordRaw makes a reader store the samples it gets. Call it before the first Read and
// before Stop. Stacks stay addresses: the samples lack the files to resolve them.
func recordRaw(r *reader, i stream.Info) *rawRecorder {
	h := rawHeader{i.PageSize, i.StartBootNanos, i.BootWallNanos, i.KernelStacks, i.UserStacks, i.Net}
	rec := &rawRecorder{ring: r.ring, kernel: r.kernel, reader: r, raw: rawTrace{Header: h, Counters: make([]rawCounters, len(r.lost))}}
	r.ring, r.kernel = rec, rec
	boot := r.clock.boot
	r.clock.boot = func() uint64 {
		rec.raw.EndBootNanos = boot()
		return rec.raw.EndBootNanos
	}
	if r.stacks != nil {
		if r.stacks.programs != nil {
			r.stacks.programs.close()
		}
		r.stacks = &stacks{numbers: make(map[string]uint32)}
	}
	return rec
}

func (r *rawRecorder) next() ([]byte, error) {
	sample, err := r.ring.next()
	if err == nil {
		r.raw.Samples = append(r.raw.Samples, bytes.Clone(sample))
	}
	return sample, err
}

func (r *rawRecorder) readCounters(cpu int, n *bpfCpuState) error {
	err := r.kernel.readCounters(cpu, n)
	r.raw.Counters[cpu] = rawCounters{n.Delivered, n.Filtered, n.Lost, n.LostOthers, n.LostStacks, n.Missed, n.Inflight}
	return err
}

func (r *rawRecorder) readUnfollowed() (n uint64, err error) {
	n, err = r.kernel.readUnfollowed()
	r.raw.Unfollowed = n
	return n, err
}

func (r *rawRecorder) missed() uint64 {
	r.raw.Missed = r.kernel.missed()
	return r.raw.Missed
}

// record reads the trace to its end. It writes the samples as NAME.raw, and the events as
// NAME.ctrace.
func (r *rawRecorder) record(raw, recording io.Writer) error {
	if err := copyTrace(recording, r.raw.Header.info(), r.reader); err != nil {
		return err
	}
	return writeRaw(raw, &r.raw)
}

// copyTrace makes a recording of the events of a reader.
func copyTrace(recording io.Writer, info stream.Info, r *reader) error {
	w, err := trace.NewWriter(recording, info)
	if err != nil {
		return err
	}
	batch := make([]event.Event, 256)
	for {
		n, err := r.Read(batch)
		if err == io.EOF {
			counts, err := r.Counts()
			return errors.Join(err, w.Close(counts))
		}
		if err != nil {
			return err
		}
		if err := w.Write(batch[:n]); err != nil {
			return err
		}
	}
}

// play returns a reader of the trace. Its clock does not advance before the end, so that
// failed batch charges never time out.
func (raw *rawTrace) play(t *testing.T) *reader {
	t.Helper()
	m := newMachine(t, len(raw.Counters))
	for _, sample := range raw.Samples {
		m.script = append(m.script, step{raw: sample})
	}
	for cpu, n := range raw.Counters {
		m.counters[cpu] = bpfCpuState{
			Delivered: n.Delivered, Filtered: n.Filtered, Lost: n.Lost, LostOthers: n.LostOthers, LostStacks: n.LostStacks,
			Missed: n.Missed, Inflight: n.Inflight,
		}
	}
	m.unfollowed, m.misses = raw.Unfollowed, raw.Missed
	r := m.reader()
	m.script[len(m.script)-1].before = func() {
		m.nanos = raw.EndBootNanos
		r.Stop()
	}
	if raw.Header.KernelStacks || raw.Header.UserStacks {
		r.stacks = &stacks{numbers: make(map[string]uint32)}
	}
	return r
}

// recorded returns the events of a recording, its names separately, and its counts.
func recorded(t *testing.T, recording io.Reader) (events []event.Event, names map[event.Event]bool, counts stream.Counts) {
	t.Helper()
	r, err := trace.NewReader(recording, trace.Options{})
	if err != nil {
		t.Fatal(err)
	}
	names = make(map[event.Event]bool)
	batch := make([]event.Event, 256)
	for {
		n, err := r.Read(batch)
		for _, e := range batch[:n] {
			if e.Type.IsName() { // their order depends on the times at which blocks were written
				names[e] = true
			} else {
				events = append(events, e)
			}
		}
		if err == io.EOF {
			counts, err := r.Counts()
			if err != nil || !counts.Whole {
				t.Fatalf("%+v, %v", counts, err)
			}
			return events, names, counts
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// checkRaw reads the samples of a trace again: the events must equal those in the recording
// made with them.
func checkRaw(t *testing.T, file, recording io.Reader) {
	t.Helper()
	raw, err := readRaw(file)
	if err != nil {
		t.Fatal(err)
	}
	var played bytes.Buffer
	if err := copyTrace(&played, raw.Header.info(), raw.play(t)); err != nil {
		t.Fatal(err)
	}
	got, gotNames, gotCounts := recorded(t, &played)
	want, wantNames, wantCounts := recorded(t, recording)
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("event %d: %s\nwant %s", i, describe([][]event.Event{got[i : i+1]}), describe([][]event.Event{want[i : i+1]}))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d events, want %d", len(got), len(want))
	}
	if !maps.Equal(gotNames, wantNames) {
		t.Errorf("names %v\nwant %v", gotNames, wantNames)
	}
	// Older recordings have a batch size without enough charges to learn it.
	gotCounts.BatchPages, wantCounts.BatchPages = 0, 0
	if gotCounts != wantCounts {
		t.Errorf("counts %+v\nwant %+v", gotCounts, wantCounts)
	}
}

// TestRaw records a trace with all kinds of samples, and reads them again.
func TestRaw(t *testing.T) {
	stacked := with(failed(at(4, 1, 8)), func(e *event.Event) { e.KernelStack = 5 })
	m := newMachine(t, 2,
		sample(event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}, ParentID: 0, Name: ""}),
		sample(with(failed(at(1, 0, 7)), func(e *event.Event) { e.Cgroup.ID = 1 })), timeout, later(at(2, 0, 7)),
		sample(losing(at(3, 0, 7), 2)),
		step{raw: rawStack(5, symbol.Process{}, 0x10, 0x20)}, sample(stacked), sample(event.Event{Type: event.ReclaimBegin, BootNanos: 5, TID: 8}),
		timeout, timeout, timeout,
	)
	m.counters = []bpfCpuState{{Delivered: 3, Filtered: 4, Lost: 3, LostOthers: 1}, {Delivered: 1, Lost: 1, LostStacks: 9, Missed: 4, Inflight: 8}}
	m.unfollowed, m.misses = 1, 2
	r := m.reader()
	r.stacks = &stacks{numbers: make(map[string]uint32)}
	var file, recording bytes.Buffer
	i := stream.Info{PageSize: 4096, StartBootNanos: 1, BootWallNanos: 2, KernelStacks: true}
	if err := recordRaw(r, i).record(&file, &recording); err != nil {
		t.Fatal(err)
	}
	checkRaw(t, bytes.NewReader(file.Bytes()), bytes.NewReader(recording.Bytes()))

	// The recording must contain the events of the script.
	events, names, counts := recorded(t, &recording)
	var outcomes []string
	for _, e := range events {
		if e.Type == event.Charge {
			outcomes = append(outcomes, e.Outcome.String())
		}
	}
	if want := "miss ok ok failed"; strings.Join(outcomes, " ") != want || len(events) != 7 || len(names) != 2 {
		t.Errorf("%q, want %s; %d events, %d names", outcomes, want, len(events), len(names))
	}
	if counts.Seen != 12 || counts.Lost != 4 || counts.Filtered != 4 || counts.Missed != 14 {
		t.Errorf("%+v", counts)
	}

	// A truncated file is rejected.
	whole := file.Bytes()
	if _, err := readRaw(bytes.NewReader(whole[:len(whole)-10])); err == nil {
		t.Error("read a truncated file")
	}
}
