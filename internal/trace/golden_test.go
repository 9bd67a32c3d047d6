package trace

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"chargetrace/internal/event"
)

// since returns the events that version v of the format can hold, without newer fields.
func since(v uint32, events []event.Event) (kept []event.Event) {
	for _, e := range events {
		if v < 5 && (e.Type == event.OOMKill || e.Type == event.OOM) {
			e.Order = -1
		}
		if v < 4 && e.Type == event.OOMKill {
			e.Victim.PageTableBytes, e.Victim.CgroupID, e.OOMNanos, e.UsagePages, e.MaxPages, e.Flags = 0, 0, 0, 0, 0, 0
		}
		if v < 3 {
			e.UserStack = 0
		}
		if v < 2 {
			e.KernelStack = 0
		}
		userStack := e.StackNumber == 1<<20
		if v < 3 && (e.Type.IsNet() || userStack) || v < 2 && e.Type == event.Stack {
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// TestOldRecordings plays one recording of each version, written by the code of its time.
func TestOldRecordings(t *testing.T) {
	for v := uint32(1); v <= Version; v++ {
		file, err := os.ReadFile(fmt.Sprintf("testdata/v%d.ctrace", v))
		if err != nil {
			t.Fatal(err)
		}
		got, names, rd, err := play(bytes.NewReader(file), Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := since(v, storyOf(v, 300))
		first := slices.IndexFunc(want, func(e event.Event) bool { return !e.Type.IsName() })
		same(t, got, want[first:])
		for _, name := range want[:first] {
			if !slices.Contains(names, name) {
				t.Errorf("version %d: no name %+v in %+v", v, name, names)
			}
		}
		if rd.totals.RecordedEvents != uint64(len(got)) {
			t.Errorf("version %d: counts %+v of %d events", v, *rd.totals, len(got))
		}
	}
}

// TestSameBytes records the events of v6.ctrace again and expects the same blocks. It
// compares payloads before compression: another release of the compressor may pack them
// differently.
func TestSameBytes(t *testing.T) {
	file, err := os.ReadFile("testdata/v6.ctrace")
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	w := newWriter(t, &again, info)
	events := story(300)
	renamed := event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "renamed"}
	identified := event.Event{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "renamed", Identity: "pod=cart\n"}
	for i, chunk := range [][]event.Event{events[:100], events[100:200], {renamed}, events[200:250], {identified}, events[250:]} {
		if err := w.Write(chunk); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			w.tick()
		}
	}
	if err := w.Close(counted); err != nil {
		t.Fatal(err)
	}
	got, want := payloads(t, again.Bytes()), payloads(t, file)
	if len(got) != len(want) {
		t.Fatalf("%d blocks, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].header != want[i].header || !bytes.Equal(got[i].bytes, want[i].bytes) {
			t.Errorf("block %d: %+v of %d bytes, want %+v of %d", i, got[i].header, len(got[i].bytes), want[i].header, len(want[i].bytes))
		}
	}

	sum := sha256.New()
	for _, p := range payloads(t, record(t, story(blockEvents+5000))) {
		sum.Write(p.bytes)
	}
	if got, want := hex.EncodeToString(sum.Sum(nil)), "b4d131b10f208a6aebd10752f465a860ea9f21ff27bc677511be231ac9d37b47"; got != want {
		t.Errorf("the payloads of two blocks have the SHA-256 %s, want %s", got, want)
	}
}

// payload is a block before compression.
type payload struct {
	header blockHeader // without the fields that depend on compression
	bytes  []byte
}

func payloads(t *testing.T, file []byte) (all []payload) {
	t.Helper()
	rd, err := NewReader(bytes.NewReader(file), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		h, err := rd.file.readHeader()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := rd.file.readPayload(&h)
		if err != nil {
			t.Fatal(err)
		}
		h.checksum, h.stored = 0, 0
		all = append(all, payload{h, bytes.Clone(b)})
	}
}
