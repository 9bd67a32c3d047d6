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
)

// A Profile is a [stream.Sink] that adds up what was charged by stack, and
// writes that when it is closed. A charge whose stack is not known counts as one
// of no functions.
type Profile struct {
	writer
	samples cause.Profile
	pprof   bool // the samples are by process and cgroup too
}

// NewFolded returns a Profile that writes lines for flame-graph tools: the name of
// the process, the functions from the outermost on, separated by semicolons, a
// blank, and the pages charged.
func NewFolded(w io.Writer, header stream.Info) *Profile {
	return &Profile{newWriter(w, header), make(cause.Profile), false}
}

// NewPprof returns a Profile that writes the gzipped protocol buffer of pprof, with
// the values charges, pages and failed_pages and the labels cgroup, comm, pid and
// cause.
func NewPprof(w io.Writer, header stream.Info) *Profile {
	return &Profile{newWriter(w, header), make(cause.Profile), true}
}

// Write adds up the charges of a batch.
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
		s := p.stacks.Sample(e)
		if p.pprof {
			s.PID, s.Cgroup = e.PID, e.Cgroup
		}
		p.samples.Add(s, e)
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

func (p *Profile) writePprof() error {
	prof := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "charges", Unit: "count"}, {Type: "pages", Unit: "pages"}, {Type: "failed_pages", Unit: "pages"}},
		TimeNanos:  p.header.BootWallNanos + int64(p.header.StartBootNanos),
		PeriodType: &profile.ValueType{Type: "pages", Unit: "pages"}, Period: 1,
		DefaultSampleType: "pages",
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
		sums := p.samples[s]
		x := &profile.Sample{
			Value: []int64{int64(sums.Charges), int64(sums.Pages), int64(sums.FailedPages)},
			Label: map[string][]string{
				"comm": {s.Comm.String()}, "cgroup": {p.names.Printable(s.Cgroup)}, "cause": {s.Cause().String()},
			},
			NumLabel: map[string][]int64{"pid": {int64(s.PID)}},
		}
		for _, f := range s.Functions() {
			x.Location = append(x.Location, location(f))
		}
		prof.Sample = append(prof.Sample, x)
	}
	return prof.Write(p.w)
}
