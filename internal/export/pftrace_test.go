package export

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
)

// fieldsOf decodes a message into its fields, in order.
func fieldsOf(t *testing.T, b []byte) map[protowire.Number][]any {
	t.Helper()
	m := make(map[protowire.Number][]any)
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			m[number] = append(m[number], v)
			b = b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			m[number] = append(m[number], v)
			b = b[n:]
		default:
			t.Fatalf("field %d of type %d", number, typ)
		}
	}
	return m
}

// perfettoLines returns the events of a .pftrace, one per line. It has the field numbers of
// Perfetto's published schema on its own.
func perfettoLines(t *testing.T, file string) (got []string) {
	t.Helper()
	text := func(v any) string { return string(v.([]byte)) }
	names := make(map[uint64]string) // of tracks, with those of their parents
	interned := make(map[protowire.Number]map[any]string)
	first := true
	// named returns a string that a message has by its number, in the field iid, or itself.
	named := func(of protowire.Number, message map[protowire.Number][]any, iid, plain protowire.Number) string {
		if message[iid] == nil {
			return text(message[plain][0])
		}
		s, ok := interned[of][message[iid][0]]
		if !ok {
			t.Errorf("string %v of field %d is not known", message[iid][0], of)
		}
		return s
	}
	for i, raw := range fieldsOf(t, []byte(file))[1] {
		packet := fieldsOf(t, raw.([]byte))
		var flags uint64
		if len(packet[13]) > 0 {
			flags = packet[13][0].(uint64)
		}
		if packet[10][0].(uint64) != 1 || (flags&1 != 0) != first {
			t.Errorf("packet %d: sequence %v, flags %v", i, packet[10], flags)
		}
		first = false
		for _, data := range packet[12] {
			for field, entries := range fieldsOf(t, data.([]byte)) {
				if interned[field] == nil {
					interned[field] = make(map[any]string)
				}
				for _, entry := range entries {
					e := fieldsOf(t, entry.([]byte))
					if _, ok := interned[field][e[1][0]]; ok {
						t.Errorf("string %v of field %d is given twice", e[1][0], field)
					}
					interned[field][e[1][0]] = text(e[2][0])
				}
			}
		}
		if d := packet[60]; d != nil {
			track := fieldsOf(t, d[0].([]byte))
			uuid := track[1][0].(uint64)
			switch {
			case track[3] != nil:
				process := fieldsOf(t, track[3][0].([]byte))
				names[uuid] = fmt.Sprintf("process %d %s", process[1][0], text(process[6][0]))
			case track[4] != nil:
				thread := fieldsOf(t, track[4][0].([]byte))
				names[uuid] = fmt.Sprintf("thread %d/%d %s", thread[1][0], thread[2][0], text(thread[5][0]))
			default:
				names[uuid] = text(track[2][0])
			}
			if track[5] != nil {
				names[uuid] = names[track[5][0].(uint64)] + " > " + names[uuid]
			}
			if track[8] != nil {
				if unit := fieldsOf(t, track[8][0].([]byte))[3]; unit[0].(uint64) != 3 {
					t.Errorf("unit %v of %s", unit, names[uuid])
				}
			}
			continue
		}
		e := fieldsOf(t, packet[11][0].([]byte))
		track := e[11][0].(uint64)
		if track != 0 && names[track] == "" {
			t.Errorf("event on a track that is not described: %v", e)
		}
		line := fmt.Sprintf("%d %s: ", packet[8][0].(uint64)-info.StartBootNanos, names[track])
		switch e[9][0].(uint64) {
		case 1:
			line += "begin " + named(2, e, 10, 23)
		case 2:
			line += "end"
		case 3:
			line += "instant " + named(2, e, 10, 23)
		case 4:
			line += fmt.Sprint(int64(e[30][0].(uint64)))
		}
		if category := e[3]; category != nil && interned[1][category[0]] != "chargetrace" || (e[10] != nil) != (category != nil) {
			t.Errorf("category %v", category)
		}
		for _, a := range e[4] {
			annotation := fieldsOf(t, a.([]byte))
			line += " " + named(3, annotation, 1, 10) + "="
			if annotation[3] != nil {
				line += fmt.Sprint(annotation[3][0])
			} else {
				line += named(29, annotation, 17, 6)
			}
		}
		got = append(got, strings.ReplaceAll(line, id, "ID"))
	}
	return got
}

func TestPerfetto(t *testing.T) {
	h := info
	h.Net = true
	got := perfettoLines(t, render(t, func(w io.Writer) stream.Sink { return fed(NewPerfetto, w, h) }))
	want := []string{
		`1500 / > a,"\n > 0123456789ab > usage: -12288`,
		`1500 / > a,"\n > limit: 409600`,
		`1500 / > a,"\n > usage: 413696`,
		`1500 / > a,"\n > room: -4096`,
		`1500 thread 7/8 =1\x1b",x: instant charge failed requested_pages=64 kind=memory cgroup=/a,"\n/docker-ID.scope cgroup_label=0123456789ab failed_at=/a,"\n`,
		`1500 / > a,"\n > 0123456789ab > [dmem] > limit: 8192`,
		`1500 / > a,"\n > 0123456789ab > [dmem] > usage: 61`,
		`1500 / > a,"\n > 0123456789ab > [dmem] > room: 8131`,
		`1500 / > a,"\n > [dmem] > usage: 65`,
		`0 thread 7/8 a\xff: begin reclaim cgroup=/a,"\n`,
		`0 thread 7/8 a\xff: end freed_pages=5`,
		`0 thread 7/8 a\xff: instant OOM kill victim_pid=9 victim=+big anon_pages=1 file_pages=2 shmem_pages=3 swap_pages=4`,
		`0 thread 7/8 a\xff: instant OOM kill victim_pid=9 victim=+big anon_pages=1 file_pages=2 shmem_pages=3 swap_pages=4`,
		`0 / > a,"\n: instant OOM kill victim_pid=9 victim=+big anon_pages=1 file_pages=2 shmem_pages=3 swap_pages=4`,
		`0 thread 7/8 a\xff: instant OOM without a kill cgroup=/a,"\n result=disabled`,
		`0 thread 7/8 a\xff: begin sleep for memory.swap.high cgroup=/a,"\n`,
		`2000000000 thread 7/8 a\xff: end`,
		`18446744073709551615 : instant events lost events=12`,
		`0 / > a,"\n > usage: 286720`,
		`0 / > a,"\n > room: 122880`,
		`0 / > a,"\n > usage: 110592`,
		`0 / > a,"\n > room: 299008`,
		`0 / > a,"\n > [dmem] > usage: -1`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestPerfettoGivenBack checks that charges and uncharges below a level change its usage,
// if the trace has all of them.
func TestPerfettoGivenBack(t *testing.T) {
	h := info
	h.Net = true
	var b strings.Builder
	p := fed(NewPerfetto, &b, h)
	limited := event.Event{
		Type: event.Charge, BootNanos: info.StartBootNanos, Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, Outcome: event.OK,
		RequestedPages: 8, UsagePages: 1, MaxPages: 1 << 60, Limiting: event.Level{CgroupID: 2, UsagePages: 10, MaxPages: 30}, High: event.Level{MaxPages: unlimited},
	}
	free := limited // nothing limits it any more
	free.UsagePages, free.Limiting = 9, event.Level{UsagePages: 9, MaxPages: 1 << 60}
	uncharge := event.Event{Type: event.Uncharge, BootNanos: info.StartBootNanos, Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, RequestedPages: 16, UsagePages: 17}
	events := []event.Event{
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "b"},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "a"},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
		limited, free, uncharge,
	}
	if err := errors.Join(p.Write(events), p.Close(stream.Counts{})); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"0 / > a > b > usage: 36864", "0 / > a > limit: 122880", "0 / > a > usage: 73728", "0 / > a > room: 49152",
		"0 / > a > b > usage: 69632", "0 / > a > usage: 106496", "0 / > a > room: 16384",
		"0 / > a > b > usage: 4096", "0 / > a > usage: 40960", "0 / > a > room: 81920",
	}
	if got := perfettoLines(t, b.String()); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
