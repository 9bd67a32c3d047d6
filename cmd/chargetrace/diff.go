package main

import (
	"errors"
	"io"
	"strings"

	"chargetrace/internal/report"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
)

// diff compares what -r plays with another recording.
func diff(cfg *config, stdin io.Reader, stdout io.Writer) (err error) {
	before, beforeErr := cfg.side(cfg.play.paths, stdin)
	if before == nil {
		return beforeErr
	}
	after, afterErr := cfg.side([]string{cfg.play.diff}, stdin)
	if after == nil {
		return afterErr
	}
	// What ends early is compared all the same.
	defer func() { err = errors.Join(err, beforeErr, afterErr) }()
	out := stdout
	o := cfg.out.outputs[0]
	if o.path != "-" {
		f, _, err := cfg.create(o.path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	c := report.Compare(*before, *after)
	if o.format == "html" {
		return cfg.writeError(c.HTML(out))
	}
	return cfg.writeError(c.Text(out))
}

// side plays recordings to their end, and adds up what the flags aim at. Where
// they end early it returns both what there was and an error.
func (cfg *config) side(paths []string, stdin io.Reader) (*report.Side, error) {
	src, err := openRecordings(paths, cfg, stdin)
	if err != nil {
		return nil, err
	}
	defer src.close()
	sum := summary.New(src.Info())
	_, err = stream.Copy(sum, src, cfg.filter)
	if err != nil && !truncated(err) {
		return nil, err
	}
	return &report.Side{Name: strings.Join(paths, ", "), Info: src.Info(), Summary: sum}, explain(err)
}
