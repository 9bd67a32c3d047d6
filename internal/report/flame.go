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
)

// maxSamples is how many stacks of processes are told apart, so that a trace of
// weeks does not fill the memory.
const maxSamples = 1 << 14

func (c *collector) addSample(e *event.Event) {
	s := c.sum.Stacks.Sample(e)
	if len(c.samples) == maxSamples && c.samples[s] == nil {
		for _, x := range c.sortedSamples()[maxSamples/4:] {
			c.droppedPages += x.pages
			delete(c.samples, x.Sample)
		}
	}
	c.samples.Add(s, e)
}

// weighed is a sample with the pages that were charged.
type weighed struct {
	cause.Sample
	pages uint64
}

// sortedSamples returns the samples, those first of which most was charged.
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

// flame is a flame graph, with the outermost function on top: who asked for memory
// is what a reader looks for first.
type flame struct {
	blocks []block // each before those below it, and those from the left to the right
	pages  uint64  // of all
	cut    bool    // some are left out
	colors map[cause.Cause]cssColor
}

// block is a function in a flame graph, with all that was charged below it, or the
// name of a process.
type block struct {
	name      string
	depth     int
	at, pages uint64
	color     cssColor // of the cause that most of it was for
}

const (
	// A flame graph has the widest maxBlocks blocks that are at least one in
	// minShare of all, and as many as maxDepth one below the other.
	maxBlocks = 1000
	minShare  = 1000
	maxDepth  = 128
	// maxFunction is how many characters of a function's name are in its block, and
	// maxWhole how many the tip has, and a search. Of the whole names there are as
	// many as take maxNamesBytes as JSON.
	maxFunction   = 64
	maxWhole      = 256
	maxNamesBytes = 64 << 10
)

// path is a way down in a flame graph.
type path struct {
	names []string
	pages uint64
	cause cause.Cause
}

func (c *collector) flame() *flame {
	const most = 1 << 46 // no machine has as many, and a hostile recording may
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
		f.blocks[0].pages = f.pages // with what was dropped
	}
	if len(f.blocks) > maxBlocks {
		f.cut = true
		// No block goes before the one above it.
		slices.SortFunc(f.blocks, func(a, b block) int {
			return cmp.Or(cmp.Compare(b.pages, a.pages), cmp.Compare(a.depth, b.depth), cmp.Compare(a.at, b.at))
		})
		f.blocks = f.blocks[:maxBlocks]
		slices.SortFunc(f.blocks, func(a, b block) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.depth, b.depth)) })
	}
	return f
}

// grow adds what goes on below a block, which begins at so many pages from the left.
// All paths are alike up to depth.
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

// flameView is a flame graph, and the same in words.
type flameView struct {
	Caption  string
	Legend   []legend
	PageSize int
	Height   int // in pixels
	Blocks   []blockView
	// Names are the whole names of blocks that have not all of it.
	Names      []string
	namesBytes int
	// Cut says that a search cannot find all.
	Cut bool
}

// blockView is a block; X and Width are of a hundred.
type blockView struct {
	Name      string
	Whole     string // if Name is not all of it, the number of that in Names
	Class     string
	X, Width  string
	Y         int
	At, Pages uint64
	Narrow    bool // it has no room for a name
}

// blockHeight is in pixels; report.html has it too.
const blockHeight = 18

// nameOf returns the Name and Whole of a block.
func (v *flameView) nameOf(b block) (name, whole string) {
	name = shortenTo(b.name, maxFunction)
	if name == b.name {
		return name, ""
	}
	all := shortenTo(b.name, maxWhole)
	i := slices.Index(v.Names, all)
	if i < 0 {
		encoded, _ := json.Marshal(all) // a string has no error
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
		return nil // no charge went through
	}
	v := &flameView{PageSize: r.header.PageSize, Cut: f.cut || r.droppedPages > 0}
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
	charged := func(pages uint64) string { return size(float64(pages) * float64(r.header.PageSize)) }
	functions := "functions of the kernel"
	switch h := &r.header; {
	case h.UserStacks && h.KernelStacks:
		functions = "functions of the program and of the kernel"
	case h.UserStacks:
		functions = "functions of the program"
	}
	v.Caption = fmt.Sprintf("%s, by process and below that by the %s, the outermost first. A block is as wide as what was charged there and further in", charged(f.pages), functions)
	if len(by) > 0 {
		v.Caption += ", and has the colour of the cause that most of it was for"
	}
	v.Caption += "."
	if f.cut {
		v.Caption += fmt.Sprintf(" Left out are blocks of less than 0.1 %%, and those beyond the %s widest and %d levels.", count(maxBlocks), maxDepth)
	}
	if r.droppedPages > 0 {
		v.Caption += fmt.Sprintf(" %s was charged by more stacks than are told apart, and is in no block.", charged(r.droppedPages))
	}
	if all := r.sum.Total.ChargedPages; all > f.pages {
		v.Caption += fmt.Sprintf(" %s more has no stack.", charged(all-f.pages))
	}
	return v
}
