package export

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

var info = stream.Info{
	PageSize:       4096,
	StartBootNanos: 1_000_000_000,
	BootWallNanos:  time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano(),
}

const (
	unlimited = (1<<63 - 1) / 4096
	id        = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func comm(s string) (c [16]byte) {
	copy(c[:], s)
	return c
}

// sampleEvents returns an event of each type, with hostile names.
func sampleEvents() []event.Event {
	charge := event.Event{
		Type: event.Charge, CPU: 1, BootNanos: info.StartBootNanos + 1500, PID: 7, TID: 8, Comm: comm("=1\x1b\",x"),
		Cgroup: event.CgroupID{ID: 3}, Kind: event.Memory, Outcome: event.Failed, Flags: event.Remote | event.Predicted, FailedAt: 2,
		RequestedPages: 64, UsagePages: -3, MaxPages: unlimited,
		Limiting: event.Level{CgroupID: 2, UsagePages: 101, MaxPages: 100}, High: event.Level{MaxPages: unlimited},
	}
	dmem := charge
	dmem.Kind, dmem.Outcome, dmem.Flags, dmem.FailedAt, dmem.MaxPages = event.Dmem, event.OK, 0, 0, 8192
	dmem.Comm, dmem.Limiting, dmem.High = comm("x"), event.Level{CgroupID: 3, UsagePages: -3, MaxPages: 8192}, event.Level{CgroupID: 2, UsagePages: 1, MaxPages: 2}
	begin := event.Event{Type: event.ReclaimBegin, BootNanos: info.StartBootNanos, PID: 7, TID: 8, Comm: comm("a\xff"), Cgroup: event.CgroupID{ID: 2}}
	end := begin
	end.Type, end.FreedPages, end.DurationNanos = event.ReclaimEnd, 5, 6
	kill := begin
	kill.Type, kill.Cgroup.ID = event.OOMKill, 0
	kill.Victim = event.Victim{PID: 9, Comm: comm("+big"), AnonPages: 1, FilePages: 2, ShmemPages: 3, SwapPages: 4, PageTableBytes: 4096, CgroupID: 2}
	lowered := kill
	lowered.Cgroup.ID, lowered.OOMNanos, lowered.UsagePages, lowered.MaxPages, lowered.Flags = 2, info.StartBootNanos, 90, 64, event.LimitWrite
	waits := lowered
	waits.Type, waits.Result, waits.MaxPages, waits.Flags = event.OOM, event.Disabled, unlimited, event.UnknownCgroup|event.Cpuset|event.Mempolicy
	waits.Order = -1
	sleep := begin
	sleep.Type, sleep.Kind, sleep.UsagePages, sleep.MaxPages, sleep.DurationNanos = event.Throttle, event.Swap, 80, 70, 2e9
	stat := event.Event{Type: event.MemoryStat, BootNanos: info.StartBootNanos, Cgroup: event.CgroupID{ID: 2}, UsagePages: 70, Stat: "anon 4096\n\"\x1b 5\nx\n"}
	process := stat
	process.Type, process.Stat, process.Victim = event.Held, "", kill.Victim
	return []event.Event{
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 3}, ParentID: 2, Name: "docker-" + id + ".scope"},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 2}, ParentID: 1, Name: "a,\"\n"},
		{Type: event.CgroupName, Cgroup: event.CgroupID{ID: 1}},
		charge, dmem, begin, end, kill, lowered, waits, sleep, stat, process,
		{Type: event.Fork, BootNanos: info.StartBootNanos, PID: 7, TID: 8, Comm: comm("sh"), ChildPID: 10, Flags: event.Existing},
		{Type: event.Lost, CPU: 2, BootNanos: info.StartBootNanos - 1, LostCharges: 12},
		{Type: event.ClockStep, BootNanos: info.StartBootNanos + 5000, BootWallNanos: info.BootWallNanos - 1e9},
		{Type: event.Usage, BootNanos: info.StartBootNanos, Cgroup: event.CgroupID{ID: 2}, UsagePages: 70, Flags: event.Existing},
		{Type: event.Uncharge, BootNanos: info.StartBootNanos, PID: 7, TID: 8, Comm: comm("a\xff"), Cgroup: event.CgroupID{ID: 2}, Kind: event.Memory, RequestedPages: 63, UsagePages: 90},
		{Type: event.ForcedCharge, BootNanos: info.StartBootNanos, PID: 7, TID: 8, Comm: comm("a\xff"), Cgroup: event.CgroupID{ID: 2}, Kind: event.Dmem, RequestedPages: 4, UsagePages: -5},
	}
}

func render(t *testing.T, sink func(io.Writer) stream.Sink) string {
	t.Helper()
	var b strings.Builder
	s := sink(&b)
	events := sampleEvents()
	if err := errors.Join(s.Write(events[:4]), s.Write(events[4:]), s.Close(stream.Counts{})); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fed returns a sink of a trace with that Info, behind its World.
func fed[S stream.Sink](newSink func(io.Writer, *world.World) S, w io.Writer, info stream.Info) stream.Sink {
	of := world.New(info)
	return of.Feed(newSink(w, of))
}

func jsonl(w io.Writer) stream.Sink { return fed(NewJSONL, w, info) }

func TestJSONL(t *testing.T) {
	got := render(t, jsonl)
	const when = `"wall_time":"2026-01-02T03:04:06.000000000Z","cpu":0,"pid":7,"tid":8,"comm":"a\\xff","cgroup":"/a,\"\\n","cgroup_id":2,"hierarchy":0,"label":"/a,\"\\n","container":null`
	const container = `"label":"0123456789ab","container":{"runtime":"docker","id":"` + id + `","name":"","namespace":"","pod":"","pod_uid":""}`
	const path = `"cgroup":"/a,\"\\n/docker-` + id + `.scope"`
	const read = `"wall_time":"2026-01-02T03:04:06.000000000Z","cgroup":"/a,\"\\n","cgroup_id":2,"hierarchy":0,"label":"/a,\"\\n","container":null`
	const victim = `{"pid":9,"comm":"+big","anon_pages":1,"file_pages":2,"shmem_pages":3,"swap_pages":4,"page_table_bytes":4096,"cgroup":"/a,\"\\n"}`
	want := strings.Join([]string{
		`{"type":"charge","time_ns":1500,"wall_time":"2026-01-02T03:04:06.000001500Z","cpu":1,"pid":7,"tid":8,"comm":"=1\\x1b\",x",` + path + `,"cgroup_id":3,"hierarchy":0,` + container +
			`,"kind":"memory","outcome":"failed","requested_pages":64,"usage_pages":-3,"max_pages":null,"limiting":{"cgroup":"/a,\"\\n","usage_pages":101,"max_pages":100,"room_pages":-1},"high":null,"failed_at":"/a,\"\\n","cause":null,"kernel_stack":null,"user_stack":null,"flags":["remote","predicted"]}`,
		`{"type":"charge","time_ns":1500,"wall_time":"2026-01-02T03:04:06.000001500Z","cpu":1,"pid":7,"tid":8,"comm":"x",` + path + `,"cgroup_id":3,"hierarchy":0,` + container +
			`,"kind":"dmem","outcome":"ok","requested_bytes":64,"usage_bytes":-3,"max_bytes":8192,"limiting":{` + path + `,"usage_bytes":-3,"max_bytes":8192,"room_bytes":8195},"high":{"cgroup":"/a,\"\\n","usage_bytes":1,"max_bytes":2,"room_bytes":1},"failed_at":null,"cause":null,"kernel_stack":null,"user_stack":null,"flags":[]}`,
		`{"type":"reclaim_begin","time_ns":0,` + when + `}`,
		`{"type":"reclaim_end","time_ns":0,` + when + `,"freed_pages":5,"duration_ns":6}`,
		`{"type":"oom_kill","time_ns":0,"wall_time":"2026-01-02T03:04:06.000000000Z","cpu":0,"pid":7,"tid":8,"comm":"a\\xff","cgroup":null,"cgroup_id":0,"hierarchy":0,"label":null,"container":null,"usage_pages":null,"max_pages":null,"flags":[],"order":0,"victim":` + victim + `}`,
		`{"type":"oom_kill","time_ns":0,` + when + `,"usage_pages":90,"max_pages":64,"flags":["limit_write"],"order":0,"victim":` + victim + `}`,
		`{"type":"oom","time_ns":0,` + when + `,"usage_pages":90,"max_pages":null,"flags":["unknown_cgroup","cpuset","mempolicy"],"order":null,"result":"disabled"}`,
		`{"type":"throttle","time_ns":0,` + when + `,"kind":"swap","usage_pages":80,"high_pages":70,"duration_ns":2000000000}`,
		`{"type":"memory_stat","time_ns":0,` + read + `,"usage_pages":70,"stat":{"anon":4096,"\"\\x1b":5}}`,
		`{"type":"held","time_ns":0,` + read + `,"process":` + victim + `}`,
		`{"type":"fork","time_ns":0,"wall_time":"2026-01-02T03:04:06.000000000Z","cpu":0,"pid":7,"tid":8,"comm":"sh","child_pid":10,"existing":true}`,
		`{"type":"lost","time_ns":-1,"wall_time":"2026-01-02T03:04:05.999999999Z","cpu":2,"events":12}`,
		`{"type":"clock_step","time_ns":5000,"wall_time":"2026-01-02T03:04:05.000005000Z"}`,
		`{"type":"usage","time_ns":0,"wall_time":"2026-01-02T03:04:06.000000000Z","cgroup":"/a,\"\\n","cgroup_id":2,"hierarchy":0,"label":"/a,\"\\n","container":null,"usage_pages":70,"existing":true}`,
		`{"type":"uncharge","time_ns":0,` + when + `,"kind":"memory","pages":63,"usage_pages":90}`,
		`{"type":"forced_charge","time_ns":0,` + when + `,"kind":"dmem","bytes":4,"usage_bytes":-5}`,
		`{"type":"end","charges":2}`,
	}, "\n") + "\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for line := range strings.Lines(got) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not valid: %s", line)
		}
	}
}

func TestCSV(t *testing.T) {
	got := render(t, func(w io.Writer) stream.Sink { return fed(NewCSV, w, info) })
	records, err := csv.NewReader(strings.NewReader(got)).ReadAll() // fails unless all have the same length
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(got, "\r\n") != len(records) || strings.Count(got, "\n") != len(records) {
		t.Errorf("lines do not end in CRLF: %q", got)
	}
	column := make(map[string]int)
	for i, name := range records[0] {
		column[name] = i
	}
	for i, want := range []map[string]string{
		{"type": "charge", "time_ns": "1500", "wall_time": "2026-01-02T03:04:06.000001500Z", "cpu": "1", "pid": "7", "tid": "8", "comm": `'=1\x1b",x`,
			"cgroup": `/a,"\n/docker-` + id + ".scope", "cgroup_id": "3", "hierarchy": "0", "container": "docker:0123456789ab", "label": "0123456789ab", "container_id": id, "kind": "memory",
			"outcome": "failed", "unit": "pages", "requested": "64", "usage": "-3", "limiting_cgroup": `/a,"\n`, "limiting_usage": "101",
			"limiting_max": "100", "limiting_room": "-1", "failed_at": `/a,"\n`, "flags": "remote predicted"},
		{"type": "charge", "time_ns": "1500", "wall_time": "2026-01-02T03:04:06.000001500Z", "cpu": "1", "pid": "7", "tid": "8", "comm": "x",
			"cgroup": `/a,"\n/docker-` + id + ".scope", "cgroup_id": "3", "hierarchy": "0", "container": "docker:0123456789ab", "label": "0123456789ab", "container_id": id, "kind": "dmem",
			"outcome": "ok", "unit": "bytes", "requested": "64", "usage": "-3", "max": "8192", "limiting_cgroup": `/a,"\n/docker-` + id + ".scope",
			"limiting_usage": "-3", "limiting_max": "8192", "limiting_room": "8195", "high_cgroup": `/a,"\n`, "high_usage": "1", "high_max": "2"},
		{"type": "reclaim_begin"},
		{"type": "reclaim_end", "freed_pages": "5", "duration_ns": "6"},
		{"type": "oom_kill", "victim_pid": "9", "victim_comm": "'+big", "victim_anon_pages": "1", "victim_file_pages": "2",
			"victim_shmem_pages": "3", "victim_swap_pages": "4", "victim_page_table_bytes": "4096", "victim_cgroup": `/a,"\n`, "order": "0", "unit": "pages", "usage": "", "max": "", "cgroup": "", "cgroup_id": "0", "hierarchy": "0",
			"time_ns": "0", "wall_time": "2026-01-02T03:04:06.000000000Z", "cpu": "0", "pid": "7", "tid": "8", "comm": `a\xff`},
		{"type": "oom_kill", "usage": "90", "max": "64", "flags": "limit_write", "cgroup": `/a,"\n`},
		{"type": "oom", "usage": "90", "max": "", "flags": "unknown_cgroup cpuset mempolicy", "result": "disabled", "order": ""},
		{"type": "throttle", "usage": "80", "max": "70", "duration_ns": "2000000000"},
		{"type": "memory_stat", "usage": "70", "cgroup": `/a,"\n`, "pid": ""},
		{"type": "held", "victim_pid": "9", "victim_comm": "'+big", "cgroup": `/a,"\n`, "pid": ""},
		{"type": "fork", "time_ns": "0", "pid": "7", "tid": "8", "comm": "sh", "flags": "existing", "child_pid": "10"},
		{"type": "lost", "time_ns": "-1", "wall_time": "2026-01-02T03:04:05.999999999Z", "cpu": "2", "lost_events": "12"},
		{"type": "clock_step", "time_ns": "5000", "wall_time": "2026-01-02T03:04:05.000005000Z"},
		{"type": "usage", "time_ns": "0", "wall_time": "2026-01-02T03:04:06.000000000Z", "cgroup": `/a,"\n`, "cgroup_id": "2", "hierarchy": "0",
			"label": `/a,"\n`, "unit": "pages", "usage": "70", "flags": "existing"},
		{"type": "uncharge", "time_ns": "0", "wall_time": "2026-01-02T03:04:06.000000000Z", "cpu": "0", "pid": "7", "tid": "8", "comm": `a\xff`,
			"cgroup": `/a,"\n`, "cgroup_id": "2", "hierarchy": "0", "label": `/a,"\n`, "kind": "memory", "unit": "pages", "requested": "63", "usage": "90"},
		{"type": "forced_charge", "time_ns": "0", "wall_time": "2026-01-02T03:04:06.000000000Z", "cpu": "0", "pid": "7", "tid": "8", "comm": `a\xff`,
			"cgroup": `/a,"\n`, "cgroup_id": "2", "hierarchy": "0", "label": `/a,"\n`, "kind": "dmem", "unit": "bytes", "requested": "4", "usage": "-5"},
	} {
		record := records[i+1]
		for name, value := range want {
			if record[column[name]] != value {
				t.Errorf("line %d, %s: %q, want %q", i+1, name, record[column[name]], value)
			}
		}
		if len(want) < 8 && want["type"] != "lost" && want["type"] != "clock_step" { // only some columns are listed
			continue
		}
		for name, at := range column {
			if _, ok := want[name]; !ok && record[at] != "" {
				t.Errorf("line %d, %s: %q, want nothing", i+1, name, record[at])
			}
		}
	}
}

const csvHeader = "type,time_ns,wall_time,cpu,pid,tid,comm,cgroup,cgroup_id,hierarchy,container,kind,outcome,unit," +
	"requested,usage,max,limiting_cgroup,limiting_usage,limiting_max,limiting_room,high_cgroup,high_usage,high_max," +
	"failed_at,flags,freed_pages,duration_ns,victim_pid,victim_comm,victim_anon_pages,victim_file_pages," +
	"victim_shmem_pages,victim_swap_pages,lost_events,child_pid,cause,victim_page_table_bytes,victim_cgroup,result,order," +
	"label,container_id,container_name,namespace,pod,pod_uid\r\n"

func TestCSVAllocations(t *testing.T) {
	c := fed(NewCSV, io.Discard, info)
	events := sampleEvents()
	if err := c.Write(events); err != nil {
		t.Fatal(err)
	}
	rows := events[3:] // without the names
	if n := testing.AllocsPerRun(100, func() { c.Write(rows) }); n != 0 {
		t.Errorf("%v allocations in %d rows", n, len(rows))
	}
}

// TestCSVUnknownCause checks that the cause "-", of a charge whose stack is not in the
// trace, is not a formula.
func TestCSVUnknownCause(t *testing.T) {
	var b strings.Builder
	c := fed(NewCSV, &b, info)
	e := sampleEvents()[3]
	e.KernelStack = 1
	if err := errors.Join(c.Write([]event.Event{e}), c.Close(stream.Counts{})); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(b.String(), ",'-,,,,,(cgroup 3),,,,,\r\n") {
		t.Errorf("%q", b.String())
	}
}

func TestEmpty(t *testing.T) {
	var a, b strings.Builder
	if err := errors.Join(fed(NewJSONL, &a, info).Close(stream.Counts{}), fed(NewCSV, &b, info).Close(stream.Counts{})); err != nil {
		t.Fatal(err)
	}
	if a.String() != `{"type":"end","charges":0}`+"\n" || b.String() != csvHeader {
		t.Errorf("%q, %q", a.String(), b.String())
	}
}

func FuzzJSONL(f *testing.F) {
	f.Add([]byte("alloc"), "docker-"+id+".scope")
	f.Add([]byte{0x1b, '"', '\\', 0xff}, "\u2028\u202e")
	f.Fuzz(func(t *testing.T, name []byte, cgroup string) {
		events := sampleEvents()
		copy(events[3].Comm[:], name)
		events[0].Name = cgroup
		var b strings.Builder
		j := fed(NewJSONL, &b, info)
		j.Write(events)
		j.Close(stream.Counts{})
		for line := range strings.Lines(b.String()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("not valid: %s", line)
			}
		}
	})
}
