package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
)

// output is a value of -o.
type output struct {
	path   string // - is stdout
	format string
}

// parseOutputs sets the outputs from -o and -format. The default is the table on stdout.
func (o *outputFlags) parseOutputs() error {
	names := formatNames()
	extensions := names[1:]
	if o.format != "" && !slices.Contains(names, o.format) {
		return usageErrorf("-format %s: want %s", o.format, strings.Join(names, ", "))
	}
	paths := o.paths
	if len(paths) == 0 {
		paths = []string{"-"}
	}
	for _, path := range paths {
		out := output{path, o.format}
		if i := slices.IndexFunc(extensions, func(f string) bool { return strings.HasSuffix(path, "."+f) }); i >= 0 {
			out.format = extensions[i]
		} else if path == "-" && o.format == "" {
			out.format = "table"
		}
		if out.format == "" {
			return usageErrorf("-o %s: unknown extension; use one of .%s, or add -format", path, strings.Join(extensions, ", ."))
		}
		if slices.ContainsFunc(o.outputs, func(x output) bool { return x.path == path }) {
			return usageErrorf("-o %s is given twice", path)
		}
		o.outputs = append(o.outputs, out)
	}
	return nil
}

// writesRecording reports whether there are recordings: they contain forks, which a replay with -f needs.
func (cfg *config) writesRecording() bool {
	return cfg.recorder.keep > 0 || slices.ContainsFunc(cfg.out.outputs, func(o output) bool { return o.format == "ctrace" })
}

// shownInfo returns the Info of the events that pass the filter. It prints a warning if the
// filter leaves no balance, or if an output of stacks gets none.
func (cfg *config) shownInfo(filter stream.Filter, i stream.Info, stderr io.Writer) stream.Info {
	shown := filter.Info(i)
	if i.Net && !shown.Net {
		fmt.Fprintf(stderr, "chargetrace: no net growth is shown: filters by process, thread or charge leave no balance\n")
	}
	ofStacks := func(o output) bool { return formatNamed(o.format).ofStacks }
	if !i.KernelStacks && !i.UserStacks && slices.ContainsFunc(cfg.out.outputs, ofStacks) {
		fmt.Fprintf(stderr, "chargetrace: warning: no stacks for .pb.gz or .folded: trace with -stack or -ustack\n")
	}
	return shown
}

// outputs are the sinks of -o.
type outputs struct {
	stream.Sink
	created []string // the files that did not exist before
}

// discard removes the files that were created. Call it after Close, if no event was
// written.
func (o *outputs) discard() error {
	var errs []error
	for _, path := range o.created {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) { // see fileSink.Close
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// open opens the outputs of a trace. If one fails, it leaves no new file behind.
func (cfg *config) open(stdout, log io.Writer, sum *summary.Summary) (*outputs, error) {
	o := new(outputs)
	var sinks []stream.Sink
	for _, out := range cfg.out.outputs {
		sink, created, err := cfg.openOutput(out, stdout, log, sum)
		if err != nil {
			stream.Tee(sinks...).Close(stream.Counts{})
			return nil, errors.Join(err, o.discard())
		}
		sinks = append(sinks, sink)
		if created != "" {
			o.created = append(o.created, created)
		}
	}
	o.Sink = stream.Tee(sinks...)
	return o, nil
}

// openOutput opens one output, whose warnings go to log. created is its file if that is new.
func (cfg *config) openOutput(o output, stdout, log io.Writer, sum *summary.Summary) (_ stream.Sink, created string, err error) {
	format := formatNamed(o.format)
	if o.path == "-" {
		sink, err := format.newSink(cfg, stdout, sum)
		return sink, "", err
	}
	if o.format == "ctrace" && cfg.rotates() {
		r, err := cfg.newRotation(o.path, sum.Info, log)
		if err != nil {
			return nil, "", err
		}
		return r, r.Path(), nil
	}
	f, isNew, err := cfg.create(o.path)
	if err != nil {
		return nil, "", err
	}
	if isNew {
		created = o.path
	}
	sink, err := format.newSink(cfg, f, sum)
	if err != nil {
		f.Close()
		if isNew {
			err = errors.Join(err, os.Remove(o.path))
		}
		return nil, "", err
	}
	return &fileSink{sink, f, isNew && format.atEnd}, created, nil
}

// fileSink is a sink and the file that it writes to.
type fileSink struct {
	stream.Sink
	file *os.File
	// allOrNothing removes the file if it could not be written.
	allOrNothing bool
}

func (s *fileSink) Close(c stream.Counts) error {
	err := errors.Join(s.Sink.Close(c), s.file.Close())
	if err != nil && s.allOrNothing {
		err = errors.Join(err, os.Remove(s.file.Name()))
	}
	return err
}

// create creates a file that only the calling user can read, also under sudo: a trace
// contains data of all processes. It overwrites an existing file only with -force, and
// never a recording being played. It leaves the mode of devices and pipes alone.
func (cfg *config) create(path string) (_ *os.File, isNew bool, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		f, err = cfg.overwrite(path)
		return f, false, err
	}
	if err != nil {
		return nil, false, err
	}
	if err := giveToCaller(f); err != nil {
		return nil, false, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, true, nil
}

// giveToCaller makes a file of root that of the user who called sudo.
func giveToCaller(f *os.File) error {
	uid, uidErr := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, gidErr := strconv.Atoi(os.Getenv("SUDO_GID"))
	if uidErr != nil || gidErr != nil || os.Geteuid() != 0 {
		return nil
	}
	return f.Chown(uid, gid)
}

// overwrite opens an existing file.
func (cfg *config) overwrite(path string) (_ *os.File, err error) {
	exists := &hintedError{fmt.Errorf("%s exists", path), "-force overwrites it"}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && !cfg.out.force {
		return nil, exists
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return f, nil
	case !cfg.out.force: // the file has been replaced since
		return nil, exists
	case cfg.plays(info):
		return nil, usageErrorf("-o %s is a recording to play", path)
	}
	return f, errors.Join(f.Chmod(0o600), f.Truncate(0))
}

// plays reports whether a file is a recording to play.
func (cfg *config) plays(file os.FileInfo) bool {
	for _, path := range append(slices.Clone(cfg.play.paths), cfg.play.diff) {
		info, err := os.Stat(path)
		if path == "-" {
			info, err = os.Stdin.Stat()
		}
		if err == nil && os.SameFile(file, info) {
			return true
		}
	}
	return false
}
