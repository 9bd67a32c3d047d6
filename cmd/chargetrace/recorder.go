package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"chargetrace/internal/event"
	"chargetrace/internal/recorder"
	"chargetrace/internal/report"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/trace"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

// recorderFlags configure the flight recorder.
type recorderFlags struct {
	keep         time.Duration // 0: it does not run
	memoryBytes  int64
	when         recorder.Triggers
	after, every time.Duration
	report       bool
	command      []string
	graceBytes   int64 // 0: none
}

// The defaults of the flags.
const (
	defaultRecorderBytes = 64 << 20
	defaultAfter         = 2 * time.Second
	defaultEvery         = time.Minute
	defaultKeepBytes     = 1 << 30
)

func (f *recorderFlags) isEmpty() bool {
	return f.when == recorder.Triggers{} && f.after == defaultAfter && f.every == defaultEvery && !f.report && f.command == nil && f.graceBytes == 0
}

// parseKeep parses -keep-last, such as 60s or 60s,64M.
func (f *recorderFlags) parseKeep(s string) (err error) {
	duration, size, hasSize := strings.Cut(s, ",")
	bad := badValue("a time, and perhaps a size of 1M to 64G, such as 60s or 60s,64M")
	if f.keep, err = parsePositiveDuration(duration); err != nil {
		return bad
	}
	f.memoryBytes = defaultRecorderBytes
	if hasSize {
		f.memoryBytes, err = parseSize(size)
		if err != nil || f.memoryBytes < trace.MinRingBytes || f.memoryBytes > 64<<30 {
			return bad
		}
	}
	return nil
}

// parseCommand parses -exec: words separated by spaces.
func (f *recorderFlags) parseCommand(s string) error {
	if f.command = strings.Fields(s); len(f.command) == 0 || strings.ContainsAny(s, "'\"`") {
		return badValue("a command and its arguments, separated by spaces; no shell reads it, so that quotes need a script")
	}
	return nil
}

// folderOptions are those of -keep and -keep-size. Warnings go to log.
func (cfg *config) folderOptions(log io.Writer) recorder.FolderOptions {
	return recorder.FolderOptions{
		MaxFiles: cfg.out.keep, MaxBytes: cfg.out.keepBytes, Prepare: giveToCaller,
		Dropped: func(path string) {
			fmt.Fprintf(log, "chargetrace: warning: the disk is full: removed %s, the oldest recording there\n", event.Printable(path))
		},
	}
}

// rotationBytes is the memory for what a slow disk has not taken yet.
const rotationBytes = 32 << 20

// newRotation begins the recordings of -rotate. Warnings go to log.
func (cfg *config) newRotation(path string, info stream.Info, log io.Writer) (*recorder.Rotation, error) {
	memory, err := recorder.Memory(rotationBytes)
	if err != nil {
		return nil, err
	}
	return recorder.NewRotation(path, info, recorder.RotationOptions{
		MaxBytes: cfg.out.rotateBytes, MaxAge: cfg.out.rotateAfter, Memory: memory, Live: len(cfg.play.paths) == 0,
		Warn:   func(message string) { fmt.Fprintf(log, "chargetrace: warning: %s\n", event.Printable(message)) },
		Folder: cfg.folderOptions(log),
	})
}

// flightRecorder is a run of the flight recorder.
type flightRecorder struct {
	*recorder.Recorder
	cfg      *config
	pageSize int
	folder   *recorder.Folder
	stderr   io.Writer
	command  *commandRunner // nil: none is run
}

// newRecorder opens the folder of -o.
func (s *session) newRecorder(stderr io.Writer) (_ *flightRecorder, err error) {
	f := &s.cfg.recorder
	r := &flightRecorder{cfg: s.cfg, pageSize: s.src.Info().PageSize, stderr: stderr}
	selected, _ := s.src.filter()
	limits := s.cfg.folderOptions(stderr)
	if limits.MaxBytes == 0 && limits.MaxFiles == 0 {
		limits.MaxBytes = defaultKeepBytes
	}
	r.folder, err = recorder.OpenFolder(s.cfg.out.paths[0], limits)
	if err != nil {
		return nil, &hintedError{err, "-o DIR/ is where -keep-last saves recordings; it makes the directory, but not those above it"}
	}
	o := recorder.Options{
		Keep: f.keep, When: f.when, After: f.after, Every: f.every,
		Saved: r.saved,
		Failed: func(err error) {
			fmt.Fprintf(stderr, "chargetrace: warning: %s\n", strings.Join(appendMessages(nil, err), "; "))
		},
	}
	if o.When == (recorder.Triggers{}) {
		o.When = recorder.DefaultTriggers
	}
	if f.command != nil {
		if r.command, err = newCommandRunner(f, stderr); err != nil {
			return nil, errors.Join(err, r.close())
		}
		o.Urgent = func(s recorder.Save) { r.command.runUrgently(s, r.verdict(&s.Trigger, nil)) }
	}
	s.src.completeRecorder(&o)
	if o.Memory, err = recorder.Memory(int(f.memoryBytes)); err == nil {
		r.Recorder, err = recorder.New(s.cfg.shownInfo(selected, s.src.Info(), stderr), r.folder, o)
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// close waits for the command, and closes the folder.
func (r *flightRecorder) close() (err error) {
	if r.command != nil {
		err = r.command.close()
	}
	return errors.Join(err, r.folder.Close())
}

// onlyRotates reports whether a live trace has no output but the recordings of -rotate. It can last
// for weeks, so that its memory must not grow.
func (cfg *config) onlyRotates() bool {
	return cfg.rotates() && len(cfg.out.outputs) == 1 && !cfg.view.watch && len(cfg.play.paths) == 0 && cfg.child.argv == nil
}

// record copies events to the flight recorder until the source ends or ctx is done.
func (s *session) record(ctx context.Context, restoreSignals func(), stderr io.Writer) (err error) {
	r, err := s.newRecorder(stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-s.saves:
				r.Save(recorder.Signal)
			case <-done:
				return
			}
		}
	}()
	return s.copy(ctx, r, restoreSignals, stderr, func() {
		if n := r.Suppressed(); n > 0 {
			fmt.Fprintf(stderr, "chargetrace: %d more triggers saved no recording (-every %v)\n", n, s.cfg.recorder.every)
		}
	})
}

// rotate copies events to the recordings of -rotate alone, without a summary.
func (s *session) rotate(ctx context.Context, restoreSignals func(), stderr io.Writer) error {
	selected, _ := s.src.filter()
	path := s.cfg.out.outputs[0].path
	r, err := s.cfg.newRotation(path, s.cfg.shownInfo(selected, s.src.Info(), stderr), stderr)
	if err != nil {
		return s.cfg.writeError(err)
	}
	return s.copy(ctx, r, restoreSignals, stderr, func() {
		fmt.Fprintf(stderr, "chargetrace: the last recording is %s\n", event.Printable(r.Path()))
	})
}

// copy copies events to a sink until the source ends or ctx is done. Then it calls printEnd, and
// prints the counts.
func (s *session) copy(ctx context.Context, dst stream.Sink, restoreSignals func(), stderr io.Writer, printEnd func()) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	_, left := s.src.filter()
	s.src.warn(stderr)
	if err := s.src.begin(ctx, stderr, end); err != nil {
		return errors.Join(err, dst.Close(stream.Counts{}))
	}
	context.AfterFunc(ctx, func() {
		s.src.Stop()
		restoreSignals()
	})
	counts, err := stream.Copy(dst, s.src, left)
	printEnd()
	if err != nil && !truncated(err) {
		return s.cfg.writeError(err)
	}
	return errors.Join(s.src.printCounts(stderr, counts), explain(err))
}

// saved prints which recording was saved, writes its page, and runs the command.
func (r *flightRecorder) saved(s recorder.Save) {
	sum, err := r.play(&s)
	if err != nil {
		fmt.Fprintf(r.stderr, "chargetrace: warning: %s: %v\n", event.Printable(s.Path), err)
	}
	verdict := r.verdict(&s.Trigger, sum)
	fmt.Fprintf(r.stderr, "chargetrace: saved %s: %s\n", event.Printable(s.Path), verdict)
	if s.Suppressed > 0 {
		fmt.Fprintf(r.stderr, "chargetrace: %d earlier triggers saved no recording (-every %v)\n", s.Suppressed, r.cfg.recorder.every)
	}
	if r.command != nil && !s.Alerted {
		r.command.run(s, verdict)
	}
}

// play reads a recording back for its summary, and writes its page.
func (r *flightRecorder) play(s *recorder.Save) (sum *summary.Summary, err error) {
	src, err := openRecordings([]string{s.Path}, &config{}, nil)
	if err != nil {
		return nil, err
	}
	defer src.close()
	sum = summary.New(verdict.New(world.New(src.Info()), r.cfg.view.format))
	if !r.cfg.recorder.report {
		_, err := stream.Copy(sum.Feed(sum), src, stream.Filter{})
		return sum, err
	}
	err = r.folder.SavePage(s.Name, func(w io.Writer) error {
		_, err := stream.Copy(sum.Feed(stream.Tee(sum, report.NewHTML(w, sum))), src, stream.Filter{})
		return err
	})
	return sum, err
}

// verdict returns a sentence about a trigger: that of the recording, if there is one already.
func (r *flightRecorder) verdict(t *stream.Trigger, sum *summary.Summary) string {
	if sum != nil {
		switch recorder.Reason(t.Reason) {
		case recorder.OOM:
			for _, o := range sum.OOMs {
				if o.BootNanos <= t.BootNanos && t.BootNanos <= o.LastNanos && (o.Cgroup.ID == 0 || sum.Names.Printable(o.Cgroup) == t.Cgroup) {
					return sum.Tell(o)
				}
			}
		case recorder.Limit, recorder.High:
			for _, l := range sum.SortedLimits() {
				isHigh := t.Reason == string(recorder.High)
				if l.High == isHigh && l.Kind.String() == t.Kind && sum.Names.Printable(l.Cgroup) == t.Cgroup {
					return sum.TellLimit(l)
				}
			}
		}
	}
	f := r.cfg.view.format
	f.PageSize = r.pageSize
	return verdict.TellTrigger(&f, t)
}

// isFolder reports whether a path can be that of the directory of recordings.
func isFolder(path string) bool {
	if info, err := os.Stat(path); err == nil {
		return info.IsDir()
	}
	return path != "-" && (strings.HasSuffix(path, "/") || filepath.Ext(path) == "")
}
