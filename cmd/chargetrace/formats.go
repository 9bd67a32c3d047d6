package main

import (
	"io"
	"slices"

	"chargetrace/internal/export"
	"chargetrace/internal/report"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/table"
	"chargetrace/internal/trace"
	"chargetrace/internal/world"
)

// format is a format of outputs.
type format struct {
	name string // for -format, and except for table a file name extension
	// newSink returns a sink that writes to w. It may read what sum and its World have.
	newSink func(cfg *config, w io.Writer, sum *summary.Summary) (stream.Sink, error)
	// atEnd means that part of a file is useless: it is written when the sink is closed.
	atEnd bool
	// ofStacks means that the output has nothing but stacks.
	ofStacks bool
}

// formats are all formats, the default of a terminal first.
var formats = []format{
	{name: "table", newSink: func(cfg *config, w io.Writer, sum *summary.Summary) (stream.Sink, error) {
		return table.New(w, sum.Verdict, table.Options{Wide: cfg.view.wide, Columns: columns(w)}), nil
	}},
	{name: "ctrace", newSink: func(_ *config, w io.Writer, sum *summary.Summary) (stream.Sink, error) {
		return trace.NewWriter(w, sum.Info)
	}},
	{name: "json", newSink: ofSummary(summary.NewJSON), atEnd: true},
	{name: "jsonl", newSink: ofWorld(export.NewJSONL)},
	{name: "csv", newSink: ofWorld(export.NewCSV)},
	{name: "pftrace", newSink: ofWorld(export.NewPerfetto)},
	{name: "html", newSink: ofSummary(report.NewHTML), atEnd: true},
	{name: "svg", newSink: ofSummary(report.NewSVG), atEnd: true},
	{name: "png", newSink: ofSummary(report.NewPNG), atEnd: true},
	{name: "pb.gz", newSink: ofWorld(export.NewPprof), atEnd: true, ofStacks: true},
	{name: "folded", newSink: ofWorld(export.NewFolded), atEnd: true, ofStacks: true},
}

// ofWorld adapts the constructor of a sink that reads the World.
func ofWorld[S stream.Sink](newSink func(io.Writer, *world.World) S) func(*config, io.Writer, *summary.Summary) (stream.Sink, error) {
	return func(_ *config, w io.Writer, sum *summary.Summary) (stream.Sink, error) {
		return newSink(w, sum.World), nil
	}
}

// ofSummary adapts the constructor of a sink that reads the Summary.
func ofSummary[S stream.Sink](newSink func(io.Writer, *summary.Summary) S) func(*config, io.Writer, *summary.Summary) (stream.Sink, error) {
	return func(_ *config, w io.Writer, sum *summary.Summary) (stream.Sink, error) { return newSink(w, sum), nil }
}

// formatNames are the names of formats, in their order.
func formatNames() (names []string) {
	for _, f := range formats {
		names = append(names, f.name)
	}
	return names
}

// formatNamed returns the format with a name, or nil.
func formatNamed(name string) *format {
	if i := slices.IndexFunc(formats, func(f format) bool { return f.name == name }); i >= 0 {
		return &formats[i]
	}
	return nil
}
