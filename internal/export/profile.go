package export

import (
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
// values charges, pages and failed_pages, and the labels cgroup, comm, pid and cause.
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
	of         func(s *cause.Sums) uint64
}{
	{"charges", "count", func(s *cause.Sums) uint64 { return s.Charges }},
	{"pages", "pages", func(s *cause.Sums) uint64 { return s.Pages }},
	{"failed_pages", "pages", func(s *cause.Sums) uint64 { return s.FailedPages }},
}

func (p *Profile) writePprof() error {
	prof := &profile.Profile{
		TimeNanos:  p.world.Info.BootWallNanos + int64(p.world.Info.StartBootNanos),
		PeriodType: &profile.ValueType{Type: "pages", Unit: "pages"}, Period: 1,
		DefaultSampleType: "pages",
	}
	for _, v := range sampleValues {
		prof.SampleType = append(prof.SampleType, &profile.ValueType{Type: v.name, Unit: v.unit})
	}
	locations := make(map[string]*profile.Location)
	location := func(name string) *profile.Location {
		l := locations[name]
		if l == nil {
			f := &profile.Function{ID: uint64(len(prof.Function) + 1), Name: name, SystemName: name}
			l = &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
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
		for _, v := range sampleValues {
			x.Value = append(x.Value, int64(v.of(p.samples[s])))
		}
		for _, f := range s.Functions() {
			x.Location = append(x.Location, location(f))
		}
		prof.Sample = append(prof.Sample, x)
	}
	return prof.Write(p.w)
}
