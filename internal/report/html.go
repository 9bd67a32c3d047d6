package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
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

// page is the data of the template.
type page struct {
	Style      template.CSS
	Script     template.JS
	StyleHash  string // for the Content-Security-Policy, which allows nothing else
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
	Data       *plotData // nil: no plots
}

// plotData is the data that the script shows of the plots, in their order.
type plotData struct {
	Start, End float64 // of all plots, in ms since the start of the trace
	Plots      []any
	Names      []string // of the flame graph
}

// maxPlots is the number of page counters that are drawn.
const maxPlots = 8

// addTables adds the tables that have rows.
func (p *page) addTables(tables ...table) {
	for _, t := range tables {
		if len(t.Rows) > 0 {
			p.Tables = append(p.Tables, t.limited())
		}
	}
}

func (p *page) write(w io.Writer) error {
	p.Style, p.Script = template.CSS(styleText), template.JS(scriptText)
	p.StyleHash, p.ScriptHash = hash(styleText), hash(scriptText)
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (r *Report) writeHTML() error {
	p := page{
		Headline: r.headline(), Dateline: r.dateline(), Story: r.story(), Warnings: warnings(r.sum),
		Figures: r.figures(), Facts: r.facts(),
	}
	p.Title = p.Headline + " – chargetrace"
	r.addPlots(&p)
	p.addTables(r.killTable(), r.limitTable(), r.processTable(), r.cgroupTable(), r.netTable(), r.causeTable(), r.kindTable())
	return p.write(r.w)
}

// addPlots adds the plots and the flame graph, with their data.
func (r *Report) addPlots(p *page) {
	from, to := r.span()
	data := plotData{Start: r.millis(from), End: r.millis(to)}
	plots, of := r.plots(maxPlots)
	for i, u := range plots {
		p.Plots = append(p.Plots, r.usageView(i, u))
		data.Plots = append(data.Plots, r.usageData(u))
	}
	if of > len(plots) {
		p.PlotsNote = fmt.Sprintf("Drawn: the %d of %s counters with the most OOM kills, failures and charges.", len(plots), count(uint64(of)))
	}
	add := func(a *areaPlot, v plotView) {
		p.Charges = append(p.Charges, r.areaView(a, v))
		data.Plots = append(data.Plots, r.areaData(a))
	}
	if a := r.processPlot(); len(a.layers) > 0 {
		add(a, plotView{ID: "plot-stack", Title: "By process", Note: "memory charged in each " + duration(1<<a.shift)})
	}
	if r.knowsCauses() {
		if a := r.causePlot(); len(a.layers) > 0 {
			add(a, plotView{ID: "plot-cause", Title: "By cause", Note: "all memory charged up to a time, uncharged since or not"})
			p.Flame = r.flameView(r.flame(), a.layers)
		}
	} else if r.sum.Info.UserStacks {
		p.Flame = r.flameView(r.flame(), nil)
	}
	if p.Flame != nil {
		data.Names = p.Flame.Names
	}
	if len(data.Plots) > 0 {
		p.Data = &data
	}
}

// millis converts a time to ms since the start of the trace, rounded to a µs.
func (c *collector) millis(nanos uint64) float64 {
	return math.Round(float64(int64(nanos-c.sum.Info.StartBootNanos))/1e3) / 1e3
}
