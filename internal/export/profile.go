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
)

// A Profile is a [stream.Sink] that adds up what was charged by kernel stack, and
// writes that when it is closed. A charge whose stack is not known counts as one
// of no functions.
type Profile struct {
	writer
	samples map[sample]*values
	close   func(p *Profile) error
}

// sample is what charges have in common that are added up.
type sample struct {
	frames, comm string
	pid          uint32
	cgroup       event.CgroupID
}

type values struct{ charges, pages, failedPages int64 }

// NewFolded returns a Profile that writes lines for flame-graph tools: the name of
// the process, the functions from the outermost on, separated by semicolons, a
// blank, and the pages charged.
func NewFolded(w io.Writer, header stream.Header) *Profile {
	return newProfile(w, header, (*Profile).writeFolded)
}

// NewPprof returns a Profile that writes the gzipped protocol buffer of pprof, with
// the values charges, pages and failed_pages and the labels cgroup, comm, pid and
// cause.
func NewPprof(w io.Writer, header stream.Header) *Profile {
	return newProfile(w, header, (*Profile).writePprof)
}

func newProfile(w io.Writer, header stream.Header, close func(*Profile) error) *Profile {
	return &Profile{newWriter(w, header), make(map[sample]*values), close}
}

// Write adds up the charges of a batch.
func (p *Profile) Write(batch []event.Event) error { return p.write(batch, p.add) }

// Close writes the profile.
func (p *Profile) Close() error { return p.close(p) }

func (p *Profile) add(e *event.Event) {
	if e.Type != event.Charge || e.Kind == event.Dmem || e.Kind == event.Memsw {
		return // bytes, and what is counted again
	}
	key := sample{p.stacks.Frames(e), e.Comm.String(), e.PID, e.Cgroup}
	v := p.samples[key]
	if v == nil {
		v = new(values)
		p.samples[key] = v
	}
	v.charges++
	switch e.Outcome {
	case event.OK:
		v.pages += int64(e.RequestedPages)
	case event.Failed:
		v.failedPages += int64(e.RequestedPages)
	}
}

// functions returns the functions of a sample, the innermost first, as they may be
// printed.
func (s *sample) functions() []string {
	if s.frames == "" {
		return nil
	}
	functions := cause.Functions(s.frames)
	for i, f := range functions {
		functions[i] = event.Printable(f)
	}
	return functions
}

func (p *Profile) writeFolded() error {
	pages := make(map[string]int64)
	for s, v := range p.samples {
		functions := s.functions()
		slices.Reverse(functions)
		pages[strings.Join(append([]string{strings.ReplaceAll(s.comm, ";", ":")}, functions...), ";")] += v.pages
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
	samples := slices.SortedFunc(maps.Keys(p.samples), func(a, b sample) int {
		return cmp.Or(cmp.Compare(a.frames, b.frames), cmp.Compare(a.pid, b.pid), cmp.Compare(a.comm, b.comm),
			cmp.Compare(a.cgroup.Hierarchy, b.cgroup.Hierarchy), cmp.Compare(a.cgroup.ID, b.cgroup.ID))
	})
	for _, s := range samples {
		v := p.samples[s]
		x := &profile.Sample{
			Value: []int64{v.charges, v.pages, v.failedPages},
			Label: map[string][]string{
				"comm": {s.comm}, "cgroup": {p.names.Printable(s.cgroup)}, "cause": {cause.Of(s.frames).String()},
			},
			NumLabel: map[string][]int64{"pid": {int64(s.pid)}},
		}
		for _, f := range s.functions() {
			x.Location = append(x.Location, location(f))
		}
		prof.Sample = append(prof.Sample, x)
	}
	return prof.Write(p.w)
}
