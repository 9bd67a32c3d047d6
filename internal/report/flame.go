package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"chargetrace/internal/cause"
	"chargetrace/internal/event"
	"chargetrace/internal/text"
)

// maxSamples is the number of different stacks that are kept. It bounds the memory of a
// trace of weeks.
const maxSamples = 1 << 14

func (c *collector) addSample(e *event.Event) {
	s := c.sum.Stacks.Sample(e)
	if len(c.samples) == maxSamples && c.samples[s] == nil {
		for _, x := range c.sortedSamples()[maxSamples/4:] {
			c.droppedPages += x.pages
			delete(c.samples, x.Sample)
		}
	}
	c.samples.Add(s, e, c.sum.Info.Kinds)
}

// weighed is a sample with its charged pages.
type weighed struct {
	cause.Sample
	pages uint64
}

// sortedSamples returns the samples, the most charged first.
func (c *collector) sortedSamples() []weighed {
	var samples []weighed
	for s, sums := range c.samples {
		samples = append(samples, weighed{s, sums.Pages})
	}
	slices.SortFunc(samples, func(a, b weighed) int {
		if a.pages != b.pages {
			return cmp.Compare(b.pages, a.pages)
		}
		return a.Compare(b.Sample)
	})
	return samples
}

// flame is a flame graph, the outermost function on top: a reader looks first for the
// code that allocates.
type flame struct {
	blocks []block // depth first, from left to right
	pages  uint64  // of all blocks and dropped samples
	cut    bool    // some blocks are left out
	colors map[cause.Cause]cssColor
}

// block is a process or a function, with the pages charged by it and its callees.
type block struct {
	name      string
	depth     int
	at, pages uint64   // its left edge and its width
	color     cssColor // of its largest cause
}

const (
	// A flame graph has the widest maxBlocks blocks, none narrower than 1/minShare of
	// all, and at most maxDepth levels below the first.
	maxBlocks = 1000
	minShare  = 1000
	maxDepth  = 128
	// A block has maxFunction characters of its function's name, its tip and a search
	// have maxWhole. The longer names take at most maxNamesBytes as JSON.
	maxFunction   = 64
	maxWhole      = 256
	maxNamesBytes = 64 << 10
)

// path is a stack below its process, the outermost function first.
type path struct {
	names []string
	pages uint64
	cause cause.Cause
}

func (c *collector) flame() *flame {
	const most = 1 << 46 // pages; bounds the sums of a hostile recording
	f := &flame{pages: min(c.droppedPages, most), colors: c.causeColors()}
	var paths []path
	for _, s := range c.sortedSamples() {
		if pages := min(s.pages, most); pages > 0 {
			names := append([]string{"all"}, s.Path()...)
			if len(names) > maxDepth+1 {
				names = slices.Clone(names[:maxDepth+1])
			}
			paths = append(paths, path{names, pages, s.Cause()})
			f.pages += pages
		}
	}
	f.grow(paths, 0, 0)
	if len(f.blocks) > 0 {
		f.blocks[0].pages = f.pages // with dropped samples
	}
	if len(f.blocks) > maxBlocks {
		f.cut = true
		// A block sorts before its narrower callees, so none loses its parent.
		slices.SortFunc(f.blocks, func(a, b block) int {
			return cmp.Or(cmp.Compare(b.pages, a.pages), cmp.Compare(a.depth, b.depth), cmp.Compare(a.at, b.at))
		})
		f.blocks = f.blocks[:maxBlocks]
		slices.SortFunc(f.blocks, func(a, b block) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.depth, b.depth)) })
	}
	return f
}

// grow adds the blocks of a depth below a block at a number of pages from the left. The
// paths are equal up to that depth.
func (f *flame) grow(paths []path, depth int, at uint64) {
	type branch struct {
		name    string
		paths   []path
		pages   uint64
		byCause [cause.NumCauses]uint64
	}
	branches := make(map[string]*branch)
	for _, p := range paths {
		if len(p.names) == depth {
			continue
		}
		b := branches[p.names[depth]]
		if b == nil {
			b = &branch{name: p.names[depth]}
			branches[b.name] = b
		}
		b.paths = append(b.paths, p)
		b.pages += p.pages
		b.byCause[p.cause] += p.pages
	}
	for _, b := range slices.SortedFunc(maps.Values(branches), func(a, b *branch) int {
		return cmp.Or(cmp.Compare(b.pages, a.pages), cmp.Compare(a.name, b.name))
	}) {
		if b.pages < f.pages/minShare || depth == maxDepth {
			f.cut = true
			continue
		}
		most := slices.Index(b.byCause[:], slices.Max(b.byCause[:]))
		color, ok := f.colors[cause.Cause(most)]
		if !ok {
			color = othersColor
		}
		f.blocks = append(f.blocks, block{b.name, depth, at, b.pages, color})
		f.grow(b.paths, depth+1, at)
		at += b.pages
	}
}

// flameView is a flame graph with its description.
type flameView struct {
	Caption  string
	Legend   []legend
	PageSize int
	Height   int // in pixels
	Blocks   []blockView
	// Names are the names that are longer than their blocks'.
	Names      []string
	namesBytes int  // as JSON
	Cut        bool // a search may miss blocks
}

// blockView is a block of a flameView.
type blockView struct {
	Name      string
	Whole     string // the index of the longer name in Names; empty: Name is all
	Class     string
	X, Width  string // percent
	Y         int
	At, Pages uint64
	Narrow    bool // no room for the name
}

// blockHeight is in pixels; report.html has it too.
const blockHeight = 18

// nameOf returns the Name and the Whole of a block.
func (v *flameView) nameOf(b block) (name, whole string) {
	name = text.Shorten(b.name, maxFunction)
	if name == b.name {
		return name, ""
	}
	all := text.Shorten(b.name, maxWhole)
	i := slices.Index(v.Names, all)
	if i < 0 {
		encoded, _ := json.Marshal(all) // a string does not fail
		if v.namesBytes += len(encoded); v.namesBytes > maxNamesBytes {
			v.Cut = true
			return name, ""
		}
		i = len(v.Names)
		v.Names = append(v.Names, all)
	}
	return name, strconv.Itoa(i)
}

func (r *Report) flameView(f *flame, by []layer) *flameView {
	if len(f.blocks) == 0 {
		return nil // no charge succeeded
	}
	v := &flameView{PageSize: r.sum.Info.PageSize, Cut: f.cut || r.droppedPages > 0}
	for _, l := range by {
		v.Legend = append(v.Legend, legend{l.color.class, l.name})
	}
	percent := func(pages uint64) float64 { return 100 * float64(pages) / float64(f.pages) }
	text := func(percent float64) string { return strconv.FormatFloat(percent, 'f', 2, 64) }
	for _, b := range f.blocks {
		v.Height = max(v.Height, (b.depth+1)*blockHeight)
		name, whole := v.nameOf(b)
		v.Blocks = append(v.Blocks, blockView{
			name, whole, b.color.class, text(percent(b.at)), text(percent(b.pages)),
			b.depth * blockHeight, b.at, b.pages, percent(b.pages) < 3,
		})
	}
	charged := func(pages uint64) string { return r.size(int64(pages), event.Memory) }
	functions := "functions of the kernel"
	switch h := &r.sum.Info; {
	case h.UserStacks && h.KernelStacks:
		functions = "functions of the program and of the kernel"
	case h.UserStacks:
		functions = "functions of the program"
	}
	v.Caption = fmt.Sprintf("%s, by process and then by the %s, the outermost first. The width of a block is the memory charged by it and its callees", charged(f.pages), functions)
	if len(by) > 0 {
		v.Caption += ", its color is that of their largest cause"
	}
	v.Caption += "."
	if f.cut {
		v.Caption += fmt.Sprintf(" Blocks below 0.1 %%, beyond the %s widest, or deeper than %d levels are left out.", count(maxBlocks), maxDepth)
	}
	if r.droppedPages > 0 {
		v.Caption += fmt.Sprintf(" %s was charged by rare stacks and is in no block.", charged(r.droppedPages))
	}
	if all := r.sum.Total.ChargedPages; all > f.pages {
		v.Caption += fmt.Sprintf(" Another %s has no stack.", charged(all-f.pages))
	}
	return v
}
