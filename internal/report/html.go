package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"math"
)

var (
	//go:embed report.html
	pageText string
	//go:embed report.css
	styleText string
	//go:embed report.js
	scriptText string

	pageTemplate = template.Must(template.New("page").Parse(pageText))
)

// page is what the template makes a file of.
type page struct {
	Style      template.CSS
	Script     template.JS
	StyleHash  string // what the Content-Security-Policy lets run, and nothing else
	ScriptHash string
	Title      string
	Headline   string
	Dateline   string
	Story      []string
	Warnings   []string
	Figures    []figure
	Plots      []plotView
	PlotsNote  string
	Charges    []plotView
	Flame      *flameView
	Tables     []table
	Facts      []fact
	Data       any // what the script knows of the plots; nil: there are none
}

// maxPlots is how many page counters are drawn.
const maxPlots = 8

func (p *page) finish() ([]byte, error) {
	p.Style, p.Script = template.CSS(styleText), template.JS(scriptText)
	p.StyleHash, p.ScriptHash = hash(styleText), hash(scriptText)
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, p)
	return b.Bytes(), err
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (r *Report) writeHTML(about About) error {
	counts, err := about.Counts()
	if err != nil {
		return err
	}
	r.sum.Coverage.Unseen = counts.Lost + counts.LostOthers + counts.Missed
	p := page{Story: r.story(), Headline: r.headline(), Figures: r.figures()}
	p.Title = p.Headline + " – chargetrace"
	p.Dateline = r.dateline(about)
	p.Warnings = r.warnings(counts)
	var data struct {
		// Start is when, in milliseconds since the trace began, the plots begin,
		// and End when they end.
		Start, End float64
		Plots      []any
		Names      []string // of the flame graph
	}
	from, to := r.span()
	data.Start, data.End = r.millis(from), r.millis(to)
	plots, of := r.plots(maxPlots)
	for i, u := range plots {
		p.Plots = append(p.Plots, r.view(i, u))
		data.Plots = append(data.Plots, r.data(u))
	}
	if n := of - len(plots); n > 0 {
		p.PlotsNote = fmt.Sprintf("These are the %d counters where most was killed, failed or charged; %s not drawn.", len(plots), are(uint64(n)))
	}
	add := func(s *areaPlot, v plotView) {
		p.Charges = append(p.Charges, r.areaView(s, v))
		data.Plots = append(data.Plots, r.areaData(s))
	}
	if s := r.processPlot(); len(s.layers) > 0 {
		add(s, plotView{ID: "plot-stack", Title: "By process", Note: "memory charged in each " + duration(1<<s.shift)})
	}
	if r.knowsCauses() {
		if s := r.causePlot(); len(s.layers) > 0 {
			add(s, plotView{ID: "plot-cause", Title: "By cause", Note: "all memory charged up to a time, given back since or not"})
			p.Flame = r.flameView(r.flame(), s.layers)
		}
	} else if r.header.UserStacks {
		p.Flame = r.flameView(r.flame(), nil)
	}
	if p.Flame != nil {
		data.Names = p.Flame.Names
	}
	if len(data.Plots) > 0 {
		p.Data = data
	}
	for _, t := range []table{r.killTable(), r.limitTable(), r.processTable(), r.cgroupTable(), r.netTable(), r.causeTable(), r.kindTable()} {
		if len(t.Rows) > 0 {
			p.Tables = append(p.Tables, t.limited())
		}
	}
	p.Facts = r.facts(about, counts)
	b, err := p.finish()
	if err != nil {
		return err
	}
	_, err = r.w.Write(b)
	return err
}

func are(n uint64) string {
	if n == 1 {
		return "1 more is"
	}
	return count(n) + " more are"
}

// millis is a time on the plots' axis, to the microsecond.
func (c *collector) millis(nanos uint64) float64 {
	return math.Round(float64(int64(nanos-c.header.StartBootNanos))/1e3) / 1e3
}
