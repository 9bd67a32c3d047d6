package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/recorder"
	"chargetrace/internal/stream"
	"chargetrace/internal/text"
	"chargetrace/internal/trace"
	"chargetrace/internal/verdict"
	"chargetrace/internal/watch"
)

// replay plays recordings.
func replay(cfg *config, stdin io.Reader, stdout, stderr io.Writer) error {
	src, err := openRecordings(cfg.play.paths, cfg, stdin)
	if err != nil {
		return err
	}
	defer src.close()
	ctx, cancel := cfg.untilSignal(stderr)
	defer cancel()
	s := session{cfg: cfg, src: src}
	return s.start(ctx, cancel, stdout, stderr)
}

// recordings is a source that plays recordings, one after the other.
type recordings struct {
	*trace.Sequence
	files    []*os.File
	infos    []stream.Info
	empty    []string // skipped: after a crash, one part of a trace can be empty
	selected stream.Filter
	format   text.Format
}

// filter implements source.
func (r *recordings) filter() (selected, left stream.Filter) { return r.selected, r.selected }

func (r *recordings) completeScreen(*watch.Options) error { return nil }

func (r *recordings) completeRecorder(*recorder.Options) {}

// warn implements source. It prints why the flight recorder saved a recording.
func (r *recordings) warn(stderr io.Writer) {
	for _, path := range r.empty {
		fmt.Fprintf(stderr, "chargetrace: warning: %s is empty: skipped\n", event.Printable(path))
	}
	for i := range r.infos {
		if info := &r.infos[i]; info.Saved != nil {
			printSaved(stderr, info, r.format)
		}
	}
}

// maxToldTriggers is the maximum number of triggers that printSaved prints: a recorder has one
// of each reason.
const maxToldTriggers = 10

func printSaved(w io.Writer, info *stream.Info, f text.Format) {
	clock := event.NewClock(info.BootWallNanos)
	f.PageSize, f.StartBootNanos, f.WallClock = info.PageSize, info.StartBootNanos, clock.Wall
	s := info.Saved
	for i := range s.Triggers[:min(len(s.Triggers), maxToldTriggers)] {
		t := &s.Triggers[i]
		fmt.Fprintf(w, "chargetrace: saved by -keep-last: at %s %s", f.Moment(t.BootNanos), verdict.TellTrigger(&f, t))
		if t.Times > 1 {
			fmt.Fprintf(w, " (%d times)", t.Times)
		}
		fmt.Fprintln(w)
	}
	if s.Suppressed > 0 {
		fmt.Fprintf(w, "chargetrace: %d earlier triggers saved no recording (-every)\n", s.Suppressed)
	}
}

// begin implements source. Recordings end by themselves.
func (r *recordings) begin(context.Context, io.Writer, func()) error { return nil }

func openRecordings(paths []string, cfg *config, stdin io.Reader) (_ *recordings, err error) {
	r := &recordings{selected: cfg.filter, format: cfg.view.format}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	var readers []*trace.Reader
	begins := make(map[*trace.Reader]int64)
	for _, path := range sortParts(paths) {
		in := stdin
		if path != "-" {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			r.files = append(r.files, f)
			if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() == 0 && len(paths) > 1 {
				r.empty = append(r.empty, path)
				continue
			}
			in = f
		}
		reader, err := newReader(in, path, cfg)
		if err != nil {
			return nil, err
		}
		h := reader.Info()
		r.infos = append(r.infos, h)
		begins[reader] = h.BootWallNanos + int64(h.StartBootNanos)
		readers = append(readers, reader)
	}
	if len(readers) == 0 {
		return nil, errors.New("all of these files are empty")
	}
	slices.SortStableFunc(readers, func(a, b *trace.Reader) int { return cmp.Compare(begins[a], begins[b]) })
	r.Sequence, err = trace.NewSequence(readers...)
	return r, err
}

// sortParts sorts paths so that parts of one trace, which have the same start time, are in
// order of their numbers: x-2.ctrace before x-10.ctrace.
func sortParts(paths []string) []string {
	paths = slices.Clone(paths)
	slices.SortStableFunc(paths, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return paths
}

func (r *recordings) close() {
	for _, f := range r.files {
		f.Close()
	}
}

// truncated reports whether an error means that a recording could not be read completely.
func truncated(err error) bool {
	return errors.Is(err, trace.ErrEndsEarly) || errors.Is(err, trace.ErrDamaged)
}

// explain adds a hint to the error of an incomplete recording.
func explain(err error) error {
	if !truncated(err) {
		return err
	}
	return &hintedError{err, "chargetrace was killed while recording, the disk was full, or the file is damaged; all complete blocks were read"}
}

// newReader reads the header of a recording, and limits it to the part that -for, -from
// and -to select.
func newReader(in io.Reader, path string, cfg *config) (*trace.Reader, error) {
	r, err := trace.NewReader(in, trace.Options{Name: path, Follow: cfg.play.follow})
	if err != nil {
		return nil, &hintedError{err, "-o x.ctrace makes recordings; this file is not one, its start is cut or damaged, or a later chargetrace made it"}
	}
	info := r.Info()
	var from, to uint64
	if cfg.play.from != "" {
		if from, err = parseTime(cfg.play.from, info); err != nil {
			return nil, usageErrorf("-from %s: %w", cfg.play.from, err)
		}
	}
	if cfg.play.to != "" {
		if to, err = parseTime(cfg.play.to, info); err != nil {
			return nil, usageErrorf("-to %s: %w", cfg.play.to, err)
		}
	}
	if cfg.duration > 0 {
		end := max(from, info.StartBootNanos) + uint64(cfg.duration)
		if to == 0 || end < to {
			to = end
		}
	}
	r.Limit(from, to)
	return r, nil
}

// parseTime converts a duration since the start of the trace, or a wall-clock time, to the
// clock of BootNanos. A wall-clock time without a date is the first such time in the trace.
func parseTime(s string, info stream.Info) (uint64, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return info.StartBootNanos + uint64(d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return uint64(max(0, t.UnixNano()-info.BootWallNanos)), nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		t, err := time.ParseInLocation(layout, s, time.Local)
		if err != nil {
			continue
		}
		start := time.Unix(0, info.BootWallNanos+int64(info.StartBootNanos))
		t = time.Date(start.Year(), start.Month(), start.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.Local)
		if t.Before(start.Truncate(time.Second)) {
			t = t.AddDate(0, 0, 1)
		}
		return uint64(max(0, t.UnixNano()-info.BootWallNanos)), nil
	}
	return 0, errors.New("want a time since the start, such as 90s, or a time of day, such as 15:04:05")
}

// printCounts implements source.
func (r *recordings) printCounts(w io.Writer, c stream.Counts) error {
	fmt.Fprintf(w, "chargetrace: read %d = shown %d + filtered %d\n", c.Read, c.Shown, c.Read-c.Shown)
	if c.DamagedBlocks > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d blocks of the recording were damaged and skipped\n", c.DamagedBlocks)
	}
	if !c.Whole {
		return nil
	}
	// Damaged blocks are not in the counts.
	if c.DamagedBlocks == 0 && c.Seen >= c.RecordedCharges+c.Lost {
		// Filtered by the kernel and by the tracer.
		filtered := c.Seen - c.RecordedCharges - c.Lost
		fmt.Fprintf(w, "chargetrace: when recorded: seen %d = recorded %d + filtered %d + lost %d\n", c.Seen, c.RecordedCharges, filtered, c.Lost)
	}
	if lost := c.Lost + c.LostNonCharge; lost > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d events were lost when it was recorded\n", lost)
	}
	if c.Missed > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d calls were missed when it was recorded\n", c.Missed)
	}
	printLostStacks(w, &c)
	return nil
}
