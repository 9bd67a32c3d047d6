package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/trace"
)

// replay plays recordings.
func replay(cfg *config, stdin io.Reader, stdout, stderr io.Writer) error {
	src, err := openRecordings(cfg.inputs, cfg, stdin)
	if err != nil {
		return err
	}
	defer src.close()

	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()

	header := cfg.header(src, stderr)
	sink, err := cfg.open(stdout, header, src.recording())
	if err != nil {
		return cfg.writeError(err)
	}
	sum := summary.New(header)
	sinks := []stream.Sink{sink, sum}
	leave := func() {}
	if cfg.watch {
		screen, err := cfg.newWatch(stdout, stderr, header, false, cancel, cancel)
		if err != nil {
			return errors.Join(err, sink.Close())
		}
		defer screen.LeaveOnPanic()
		sinks = append(sinks, screen)
		stderr, leave = screen.LogWriter(), screen.Leave
	}
	context.AfterFunc(ctx, func() {
		src.Stop()
		leaveScreen(leave, cancel)
	})
	res, err := stream.Copy(stream.Tee(sinks...), src, cfg.aim())
	if err != nil && !notWhole(err) {
		return cfg.writeError(err)
	}
	printRecorded(stderr, res, src.Sequence)
	recorded, _ := src.Recorded()
	sum.Coverage.Unseen = recorded.Lost + recorded.LostOthers + recorded.Missed
	return errors.Join(sum.Print(stderr), explain(err))
}

// recordings are what is played, one after the other.
type recordings struct {
	*trace.Sequence
	files []*os.File
}

func openRecordings(paths []string, cfg *config, stdin io.Reader) (_ *recordings, err error) {
	r := new(recordings)
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	var readers []*trace.Reader
	begins := make(map[*trace.Reader]int64)
	for _, path := range inOrder(paths) {
		in := stdin
		if path != "-" {
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			r.files = append(r.files, f)
			in = f
		}
		reader, err := newReader(in, path, cfg)
		if err != nil {
			return nil, err
		}
		h := reader.Header()
		begins[reader] = h.BootWallNanos + int64(h.StartBootNanos)
		readers = append(readers, reader)
	}
	slices.SortStableFunc(readers, func(a, b *trace.Reader) int { return cmp.Compare(begins[a], begins[b]) })
	r.Sequence, err = trace.NewSequence(readers...)
	return r, err
}

// inOrder returns paths so that parts of one trace, which all begin at one time, come as
// they are numbered: x-2.ctrace before x-10.ctrace.
func inOrder(paths []string) []string {
	paths = slices.Clone(paths)
	slices.SortStableFunc(paths, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return paths
}

func (r *recordings) close() {
	for _, f := range r.files {
		f.Close()
	}
}

// recording says what was recorded; at the end, also how much.
func (r *recordings) recording() recording {
	return recording{
		*r.Meta(),
		func() (trace.Totals, error) { t, _ := r.Recorded(); return t, nil },
		func() bool { _, whole := r.Recorded(); return whole },
	}
}

// notWhole reports whether an error that playing ended with says that not all could
// be read that was recorded.
func notWhole(err error) bool {
	return errors.Is(err, trace.ErrEndsEarly) || errors.Is(err, trace.ErrDamaged)
}

// explain says more of an error that playing ended with.
func explain(err error) error {
	if !notWhole(err) {
		return err
	}
	return &hintedError{err, "what made it was killed, or its disk was full, or the file is damaged; all that is whole was read"}
}

// newReader reads the beginning of a recording, of which -for, -from and -to
// choose a part.
func newReader(in io.Reader, path string, cfg *config) (*trace.Reader, error) {
	r, err := trace.NewReader(in, trace.Options{Name: path, Follow: cfg.tail})
	if err != nil {
		return nil, &hintedError{err, "-o x.ctrace makes recordings; this is none, or cut or damaged in its beginning, or of a later chargetrace"}
	}
	header := r.Header()
	var from, to uint64
	if cfg.from != "" {
		if from, err = moment(cfg.from, header); err != nil {
			return nil, usageErrorf("-from %s: %w", cfg.from, err)
		}
	}
	if cfg.to != "" {
		if to, err = moment(cfg.to, header); err != nil {
			return nil, usageErrorf("-to %s: %w", cfg.to, err)
		}
	}
	if cfg.duration > 0 {
		end := max(from, header.StartBootNanos) + uint64(cfg.duration)
		if to == 0 || end < to {
			to = end
		}
	}
	r.Limit(from, to)
	return r, nil
}

// moment returns a time on the clock of BootNanos that is given as a duration
// since the trace began, or by the wall clock: with its date, or without it for
// the first such time in the trace.
func moment(s string, header stream.Header) (uint64, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return header.StartBootNanos + uint64(d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return uint64(max(0, t.UnixNano()-header.BootWallNanos)), nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		t, err := time.ParseInLocation(layout, s, time.Local)
		if err != nil {
			continue
		}
		start := time.Unix(0, header.BootWallNanos+int64(header.StartBootNanos))
		t = time.Date(start.Year(), start.Month(), start.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.Local)
		if t.Before(start.Truncate(time.Second)) {
			t = t.AddDate(0, 0, 1)
		}
		return uint64(max(0, t.UnixNano()-header.BootWallNanos)), nil
	}
	return 0, errors.New("want a time since the start, such as 90s, or of the clock, such as 15:04:05")
}

// printRecorded prints what was read of what the kernel had counted.
func printRecorded(w io.Writer, res stream.Result, src *trace.Sequence) {
	fmt.Fprintf(w, "chargetrace: read %d = shown %d + filtered %d\n", res.Shown+res.Filtered, res.Shown, res.Filtered)
	t, complete := src.Recorded()
	if t.DamagedBlocks > 0 {
		fmt.Fprintf(w, "chargetrace: warning: %d blocks of what was recorded were damaged, and are left out\n", t.DamagedBlocks)
	}
	if !complete {
		return
	}
	// What is damaged is not counted.
	if t.DamagedBlocks == 0 && t.Seen >= t.Charges+t.Lost {
		// Filtered in the kernel, and after that.
		filtered := t.Seen - t.Charges - t.Lost
		fmt.Fprintf(w, "chargetrace: when recorded: seen %d = recorded %d + filtered %d + lost %d\n", t.Seen, t.Charges, filtered, t.Lost)
	}
	var warnings []string
	for _, x := range []struct {
		n    uint64
		what string
	}{
		{t.Lost + t.LostOthers, "events were lost when it was recorded"},
		{t.Missed, "calls were missed when it was recorded"},
	} {
		if x.n > 0 {
			warnings = append(warnings, fmt.Sprintf("chargetrace: warning: %d %s\n", x.n, x.what))
		}
	}
	io.WriteString(w, strings.Join(warnings, ""))
	printStackLoss(w, t.Unstacked, t.Unnamed)
}
