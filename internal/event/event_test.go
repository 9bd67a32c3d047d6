package event

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func sample() Event {
	e := Event{
		Type: Charge, CPU: 3, BootNanos: 1e18, PID: 4711, TID: 4712, Cgroup: CgroupID{99, 4},
		Kind: Memsw, Outcome: Failed, Flags: Remote | Retry,
		Counter: 0xffff888012345678, StackPointer: 0xffffc90000123456, RequestedPages: 64, UsagePages: -1,
		MaxPages: 2560, Limiting: Level{98, -2, 30}, High: Level{97, 5, 6}, FailedAt: 98, LostCharges: 7,
		KernelStack: 1 << 14, UserStack: 1 << 31,
	}
	copy(e.Comm[:], "alloc")
	return e
}

// samples returns an event of each Type.
func samples() []Event {
	charge := sample()
	common := charge
	common.Counter, common.StackPointer, common.RequestedPages, common.UsagePages, common.MaxPages = 0, 0, 0, 0, 0
	common.Limiting, common.High, common.FailedAt, common.LostCharges = Level{}, Level{}, 0, 0
	common.KernelStack, common.UserStack = 0, 0
	lost, begin, end, kill := charge, common, common, common
	lost.Type = Lost
	begin.Type = ReclaimBegin
	end.Type, end.FreedPages, end.DurationNanos = ReclaimEnd, 12, 3456
	kill.Type = OOMKill
	kill.Victim = Victim{PID: 5, AnonPages: 6, FilePages: 7, ShmemPages: 8, SwapPages: 9, PageTableBytes: 10, CgroupID: 1 << 40}
	copy(kill.Victim.Comm[:], "big")
	kill.OOMNanos, kill.UsagePages, kill.MaxPages = 1e17, -11, 1<<50
	oom, throttle := kill, common
	oom.Type, oom.Victim, oom.Result, oom.Order = OOM, Victim{}, Disabled, -1
	throttle.Type, throttle.UsagePages, throttle.MaxPages, throttle.DurationNanos = Throttle, 12, 13, 14
	name := Event{Type: CgroupName, Cgroup: CgroupID{99, 4}, ParentID: 98, Name: strings.Repeat("n", 255)}
	fork := common
	fork.Type, fork.ChildPID = Fork, 4711
	uncharge := common
	uncharge.Type, uncharge.Counter, uncharge.RequestedPages, uncharge.UsagePages = Uncharge, 1<<63, 63, -2
	forced := uncharge
	forced.Type = ForcedCharge
	return []Event{charge, lost, begin, end, kill, name, fork, uncharge, forced, oom, throttle}
}

func TestEncodeDecode(t *testing.T) {
	for _, want := range samples() {
		raw := want.AppendEncoded(nil)
		var got Event
		if err := got.Decode(raw); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("decoded %+v\nwant    %+v", got, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	e := sample()
	good := e.AppendEncoded(nil)
	changed := func(raw []byte, at int, b byte) []byte {
		raw = bytes.Clone(raw)
		raw[at] = b
		return raw
	}
	name := Event{Type: CgroupName, Name: "a"}
	oom := Event{Type: OOM, Result: NoVictim}
	named := name.AppendEncoded(nil)
	for what, raw := range map[string][]byte{
		"empty": nil, "short": good[:len(good)-1], "long": append(bytes.Clone(good), 0),
		"type": changed(good, 0, 0xee), "no type": changed(good, 0, 0), "huge type": changed(good, 3, 0xee),
		"stack": {byte(Stack), 0, 0, 0}, "usage": {byte(Usage), 0, 0, 0},
		"length of another type": changed(good, 0, byte(OOMKill)), "kind": changed(good, 52, byte(numKinds)), "outcome": changed(good, 53, byte(numOutcomes)),
		"result": changed(oom.AppendEncoded(nil), oomSize-8, byte(endOOMResults)), "no result": changed(oom.AppendEncoded(nil), oomSize-8, 0),
		"name with a slash": changed(named, 24, '/'),
		"name without end":  append(named[:24:24], bytes.Repeat([]byte("x"), nameSize)...),
	} {
		got := Event{PID: 1}
		if err := got.Decode(raw); err == nil {
			t.Errorf("%s: accepted", what)
		} else if got != (Event{PID: 1}) {
			t.Errorf("%s: refused, but changed the event", what)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range samples() {
		f.Add(e.AppendEncoded(nil))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var e, again Event
		if e.Decode(raw) != nil {
			return
		}
		if err := again.Decode(e.AppendEncoded(nil)); err != nil || again != e {
			t.Errorf("%x decodes to %+v, which re-encodes to %+v, %v", raw, e, again, err)
		}
		_, _ = e.Kind.String(), e.Outcome.String()
		e.LimitHit()
		AppendPrintable(nil, e.Comm.Bytes())
	})
}

// TestDecodeComm decodes names with the rest of an older name after the NUL, as in
// kernels before 5.17.
func TestDecodeComm(t *testing.T) {
	e := Event{Type: OOMKill, Comm: Comm{'l', 's', 0, 'h'}, Victim: Victim{Comm: Comm{'a', 0, 'b'}}}
	var got Event
	if err := got.Decode(e.AppendEncoded(nil)); err != nil || got.Comm != (Comm{'l', 's'}) || got.Victim.Comm != (Comm{'a'}) {
		t.Errorf("%q and %q, %v", got.Comm, got.Victim.Comm, err)
	}
}

// TestTrim trims names of each length. The bytes around the NUL are the edge cases of
// its bit tricks.
func TestTrim(t *testing.T) {
	for _, fill := range []byte{1, 0x7f, 0x80, 0x81, 0xff} {
		for _, rest := range []byte{0, 1, 0x80, 0xff} {
			for n := range len(Comm{}) + 1 {
				var got, want Comm
				for i := range got {
					switch {
					case i < n:
						got[i], want[i] = fill, fill
					case i > n:
						got[i] = rest
					}
				}
				before := got
				if got.trim(); got != want {
					t.Errorf("%q became %q", before[:], got[:])
				}
			}
		}
	}
}

func TestParseKinds(t *testing.T) {
	for list, want := range map[string]Kinds{
		"memory": 1 << Memory, "swap,memory": 1<<Memory | 1<<Swap, "unknown": 1, "": 0, "memory,": 0, "mem": 0,
	} {
		got, err := ParseKinds(list)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %b, %v", list, got, err)
		}
	}
	for k := range numKinds {
		if got, err := ParseKinds(k.String()); got != 1<<k || err != nil || !AllKinds.Has(k) {
			t.Errorf("%v: %b, %v", k, got, err)
		}
	}
}

func TestLimits(t *testing.T) {
	const longMax = 1<<63 - 1
	for _, tc := range []struct {
		usage            int64
		max              uint64
		limited, atLimit bool
	}{
		{0, 2560, true, false},
		{2559, 2560, true, false},
		{2560, 2560, true, true},
		{2600, 2560, true, true},
		{-1, 0, true, false},
		{0, 0, true, true},
		{1 << 40, longMax / 4096, false, false},
		{0, longMax / 65536, false, false},
		{0, longMax / 65536 &^ (1<<18 - 1), false, false}, // hugetlb, 16 GiB pages of 64 KiB
		{0, 1<<64 - 1, false, false},
	} {
		e := Event{UsagePages: tc.usage, MaxPages: tc.max}
		if l := (Level{UsagePages: tc.usage, MaxPages: tc.max}); l.Limited() != tc.limited || l.AtLimit() != tc.atLimit {
			t.Errorf("level %+v: limited %v, at limit %v", l, l.Limited(), l.AtLimit())
		}
		if e.Limited() != tc.limited || e.AtLimit() != tc.atLimit {
			t.Errorf("usage %d, max %d: limited %v, at limit %v; want %v, %v",
				tc.usage, tc.max, e.Limited(), e.AtLimit(), tc.limited, tc.atLimit)
		}
	}
}

func TestUsageAfter(t *testing.T) {
	for _, tc := range []struct {
		typ     Type
		outcome Outcome
		want    int64
	}{
		{Charge, OK, 13}, {Charge, Failed, 10}, {Charge, BatchMiss, 10}, {ForcedCharge, NoOutcome, 13}, {Uncharge, NoOutcome, 7},
	} {
		e := Event{Type: tc.typ, Outcome: tc.outcome, UsagePages: 10, RequestedPages: 3}
		if got := e.UsageAfterPages(); got != tc.want {
			t.Errorf("type %d, %v: %d, want %d", tc.typ, tc.outcome, got, tc.want)
		}
	}
}

func TestCommBytes(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"alloc\x00rest":                "alloc",
		"sixteen-bytes-no" + "ignored": "sixteen-bytes-no",
	} {
		var e Event
		copy(e.Comm[:], in)
		if got := string(e.Comm.Bytes()); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestAppendPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"alloc":           "alloc",
		"tmux: server":    "tmux: server",
		"müller":          "müller",
		"a\\b":            `a\\b`,
		"a\nb\tc":         `a\nb\tc`,
		"\x1b[31mred\x07": `\x1b[31mred\x07`,
		"cut\xc3":         `cut\xc3`,
		"\xc2\x9b31m":     `\u009b31m`, // CSI as one character
		"\u202egnp.exe":   `\u202egnp.exe`,
		"\U000e0041":      `\U000e0041`,
		"\x7f":            `\x7f`,
		"�":               "�",
	} {
		if got := string(AppendPrintable(nil, []byte(in))); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func FuzzAppendPrintable(f *testing.F) {
	f.Add("alloc", "\x1b[2J")
	f.Fuzz(func(t *testing.T, a, b string) {
		pa, pb := AppendPrintable(nil, []byte(a)), AppendPrintable(nil, []byte(b))
		if (a == b) != bytes.Equal(pa, pb) {
			t.Errorf("%q and %q print as %s and %s", a, b, pa, pb)
		}
		if !utf8.Valid(pa) || strings.ContainsFunc(string(pa), func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q prints as %q", a, pa)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	s := sample()
	raw := s.AppendEncoded(nil)
	var e Event
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
