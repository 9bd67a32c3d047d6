package main

import (
	"errors"
	"io"
	"os"
	"strings"

	"chargetrace/internal/report"
	"chargetrace/internal/stream"
	"chargetrace/internal/summary"
	"chargetrace/internal/text"
	"chargetrace/internal/verdict"
	"chargetrace/internal/world"
)

// diff compares the recordings of -r with another one.
func diff(cfg *config, stdin io.Reader, stdout io.Writer) error {
	before, beforeErr := cfg.side(cfg.play.paths, stdin)
	if before == nil {
		return beforeErr
	}
	after, afterErr := cfg.side([]string{cfg.play.diff}, stdin)
	if after == nil {
		return afterErr
	}
	c := report.Compare(*before, *after)
	write := c.Text
	if cfg.out.outputs[0].format == "html" {
		write = c.HTML
	}
	err := cfg.writeError(cfg.writeOnce(stdout, write))
	// A recording that ends early is compared all the same.
	return errors.Join(err, beforeErr, afterErr)
}

// writeOnce writes an output that is complete after one call of write. It removes a new
// file that is not complete.
func (cfg *config) writeOnce(stdout io.Writer, write func(io.Writer) error) error {
	path := cfg.out.outputs[0].path
	if path == "-" {
		return write(stdout)
	}
	f, isNew, err := cfg.create(path)
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Close())
	if err != nil && isNew {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// side sums up those events of recordings that match the filters. If a recording ends early,
// it returns both the sums and an error.
func (cfg *config) side(paths []string, stdin io.Reader) (*report.Side, error) {
	src, err := openRecordings(paths, cfg, stdin)
	if err != nil {
		return nil, err
	}
	defer src.close()
	sum := summary.New(verdict.New(world.New(cfg.filter.Info(src.Info())), text.Format{}))
	_, err = stream.Copy(sum.Feed(sum), src, cfg.filter)
	if err != nil && !truncated(err) {
		return nil, err
	}
	return &report.Side{Name: strings.Join(paths, ", "), Summary: sum}, explain(err)
}
