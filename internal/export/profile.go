package export

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/stream"
	"chargetrace/internal/world"
)

// A Profile is a [stream.Sink] that sums charges by stack, and writes the sums when it is
// closed. A charge without a known stack counts as a stack without functions.
type Profile struct {
	writer
	samples cause.Profile
	pprof   bool // samples also differ in process and cgroup
}

// NewFolded returns a Profile that writes the lines of flame-graph tools: the name of the
// thread and its functions, outermost first, separated by semicolons, then a blank and
// the charged pages.
func NewFolded(w io.Writer, world *world.World) *Profile {
	return &Profile{newWriter(w, world), make(cause.Profile), false}
}

// NewPprof returns a Profile that writes the gzipped protocol buffer of pprof, with the
// values charges, bytes (the default) and failed_bytes, and the labels comm, pid, cause, cgroup,
// and of a container also container, namespace and pod. Stacks begin with the function that
// needed the memory.
func NewPprof(w io.Writer, world *world.World) *Profile {
	return &Profile{newWriter(w, world), make(cause.Profile), true}
}

// Write adds the charges of a batch.
func (p *Profile) Write(batch []event.Event) error { return p.write(batch, p.add) }

// Close writes the profile.
func (p *Profile) Close(stream.Counts) error {
	if p.pprof {
		return p.writePprof()
	}
	return p.writeFolded()
}

func (p *Profile) add(e *event.Event) {
	if e.Type == event.Charge {
		s := p.world.Stacks.Sample(e)
		if p.pprof {
			s.PID, s.Cgroup = e.PID, e.Cgroup
		}
		p.samples.Add(s, e, p.world.Info.Kinds)
	}
}

func (p *Profile) writeFolded() error {
	pages := make(map[string]uint64)
	for s, sums := range p.samples {
		path := s.Path()
		path[0] = strings.ReplaceAll(path[0], ";", ":")
		pages[strings.Join(path, ";")] += sums.Pages
	}
	for _, line := range slices.Sorted(maps.Keys(pages)) {
		p.buf = fmt.Appendf(p.buf, "%s %d\n", line, pages[line])
	}
	return p.flush()
}

// sampleValues are the values of a sample in a pprof profile.
var sampleValues = []struct {
	name, unit string
	of         func(s *cause.Sums, pageSize uint64) uint64
}{
	{"charges", "count", func(s *cause.Sums, _ uint64) uint64 { return s.Charges }},
	{"bytes", "bytes", func(s *cause.Sums, pageSize uint64) uint64 { return s.Pages * pageSize }},
	{"failed_bytes", "bytes", func(s *cause.Sums, pageSize uint64) uint64 { return s.FailedPages * pageSize }},
}

func (p *Profile) writePprof() error {
	prof := &profile.Profile{
		TimeNanos:  p.world.Info.BootWallNanos + int64(p.world.Info.StartBootNanos),
		PeriodType: &profile.ValueType{Type: "bytes", Unit: "bytes"}, Period: 1,
		DefaultSampleType: "bytes",
		// pprof wants the file of the main program.
		Mapping: []*profile.Mapping{{ID: 1, File: "[kernel]", HasFunctions: true}},
	}
	pageSize := uint64(p.world.Info.PageSize)
	for _, v := range sampleValues {
		prof.SampleType = append(prof.SampleType, &profile.ValueType{Type: v.name, Unit: v.unit})
	}
	locations := make(map[string]*profile.Location)
	location := func(name string, of *profile.Mapping) *profile.Location {
		l := locations[name]
		if l == nil {
			f := &profile.Function{ID: uint64(len(prof.Function) + 1), Name: name, SystemName: name}
			l = &profile.Location{ID: f.ID, Mapping: of, Line: []profile.Line{{Function: f}}}
			prof.Function, prof.Location = append(prof.Function, f), append(prof.Location, l)
			locations[name] = l
		}
		return l
	}
	samples := slices.SortedFunc(maps.Keys(p.samples), cause.Sample.Compare)
	for _, s := range samples {
		x := &profile.Sample{
			Label: map[string][]string{
				"comm": {s.Comm.String()}, "cgroup": {p.world.Names.Printable(s.Cgroup)}, "cause": {s.Cause().String()},
			},
			NumLabel: map[string][]int64{"pid": {int64(s.PID)}},
		}
		i := p.world.Names.Identity(s.Cgroup)
		for key, value := range map[string]string{
			"container": cmp.Or(i.Name, i.ShortID()), "namespace": i.Namespace, "pod": cmp.Or(i.Pod, i.PodUID),
		} {
			if value != "" {
				x.Label[key] = []string{value}
			}
		}
		for _, v := range sampleValues {
			x.Value = append(x.Value, int64(v.of(p.samples[s], pageSize)))
		}
		for _, f := range withoutCharging(functions(s.Kernel)) {
			x.Location = append(x.Location, location(f, prof.Mapping[0]))
		}
		for _, f := range functions(s.User) {
			x.Location = append(x.Location, location(f, nil))
		}
		prof.Sample = append(prof.Sample, x)
	}
	return prof.Write(p.w)
}

func functions(s *cause.Stack) []string {
	if s == nil {
		return nil
	}
	return strings.Split(s.Functions(), ";")
}

// withoutCharging drops the innermost functions that charge, down to the one that needed the
// memory: page_counter_try_charge, try_charge_memcg, __memcg_slab_post_alloc_hook and the like.
func withoutCharging(functions []string) []string {
	needed := slices.IndexFunc(functions, func(f string) bool {
		return !strings.Contains(f, "charge") && !strings.Contains(f, "memcg") && !strings.HasPrefix(f, "page_counter_")
	})
	return functions[max(0, needed):]
}
