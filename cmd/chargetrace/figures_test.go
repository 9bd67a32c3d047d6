package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/golden"
)

// figures are the sums of a trace.
type figures struct {
	charges, failures, misses, chargedPages, kills int64
	freedPages, reclaims, reclaimNanos             int64
}

// TestSameFigures plays recordings to all outputs at once. Each must have the same sums, and
// the same sentences on limits and OOM kills.
func TestSameFigures(t *testing.T) {
	for _, recording := range append(recordingsIn(t, "testdata"), recordingsIn(t, "testdata/verdicts")...) {
		dir := t.TempDir()
		path := func(ext string) string { return filepath.Join(dir, "x."+ext) }
		table, closing := runOK(t, "-r", recording, "-o", path("html"), "-o", path("json"), "-o", path("jsonl"), "-o", path("csv"), "-o", "-")
		screen, _ := runOK(t, "-r", recording, "-watch")
		read := func(ext string) string {
			content, err := os.ReadFile(path(ext))
			if err != nil {
				t.Fatal(err)
			}
			return string(content)
		}
		want := sumsOfEvents(t, read("jsonl"))
		page := html.UnescapeString(read("html"))

		doc := struct {
			Text  []string
			OOMs  []struct{ Kills int64 }
			Total map[string]int64

			Cgroups []struct {
				Label             string
				Charges, Failures int64
				Pages             int64 `json:"charged_pages"`
				Misses            int64 `json:"batch_misses"`
				Freed             int64 `json:"freed_pages"`
			}
		}{}
		if err := json.Unmarshal([]byte(read("json")), &doc); err != nil {
			t.Fatal(err)
		}
		x := doc.Total
		got := figures{charges: x["charges"], failures: x["failures"], misses: x["batch_misses"], chargedPages: x["charged_pages"],
			freedPages: x["freed_pages"], reclaims: x["reclaims"], reclaimNanos: x["reclaim_ns"]}
		for _, o := range doc.OOMs {
			got.kills += o.Kills
		}
		if got != want {
			t.Errorf("%s: .json has %+v, .jsonl %+v", recording, got, want)
		}
		if got := strings.Count(read("csv"), "\ncharge,"); int64(got) != want.charges {
			t.Errorf("%s: .csv has %d charges, .jsonl %d", recording, got, want.charges)
		}

		for _, c := range doc.Cgroups {
			row := regexp.MustCompile(fmt.Sprintf(`(?m)^%s +%d +%d +%d +%d +\S.* +%d$`, regexp.QuoteMeta(c.Label), c.Charges, c.Pages, c.Failures, c.Misses, c.Freed))
			if !row.MatchString(closing) {
				t.Errorf("%s: no %s in the summary\n%s", recording, row, closing)
			}
		}
		for _, figure := range []string{
			fmt.Sprintf("<dt>charges</dt><dd>%s</dd>", grouped(want.charges)), fmt.Sprintf(`title="%s pages"`, grouped(want.chargedPages)),
			fmt.Sprintf("<dt>failed</dt><dd>%d</dd>", want.failures), fmt.Sprintf(`<dt>in reclaim</dt><dd title="%d runs">`, want.reclaims),
			fmt.Sprintf("<dt>OOM %s</dt><dd>%d</dd>", map[bool]string{true: "kill", false: "kills"}[want.kills == 1], want.kills),
		} {
			if !strings.Contains(page, figure) {
				t.Errorf("%s: no %s in the report", recording, figure)
			}
		}
		if last := regexp.MustCompile(`(?m)^\d+ s +(\d+) +(\d+) `).FindAllStringSubmatch(screen, -1); len(last) == 0 ||
			last[len(last)-1][1] != fmt.Sprint(want.charges) || last[len(last)-1][2] != fmt.Sprint(want.failures) {
			t.Errorf("%s: -watch ends with %q, want %+v", recording, last, want)
		}

		flat := strings.Join(strings.Fields(closing), " ") + "."
		for _, sentence := range doc.Text {
			if !strings.Contains(page, sentence) || !strings.Contains(flat, strings.TrimSuffix(sentence, ".")) {
				t.Errorf("%s: %q is in .json, but not in the report or the summary", recording, sentence)
			}
		}
		// OOMs and limits in the order of the events.
		oom := regexp.MustCompile(`OOM (?:in|of|on) .*`)
		inTable, onScreen := oom.FindAllString(strings.ReplaceAll(table, " ---\n", "\n"), -1), oom.FindAllString(screen, -1)
		if !slices.Equal(inTable, onScreen) || len(inTable) < len(doc.OOMs) {
			t.Errorf("%s: the table has %q, the screen %q, .json %d OOMs", recording, inTable, onScreen, len(doc.OOMs))
		}
	}
}

// recordingsIn returns the recordings in a directory.
func recordingsIn(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.ctrace"))
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return list
}

// TestVerdictTexts compares what the closing text says of each way to run out of memory with
// testdata/verdicts/texts, so that all are read together.
func TestVerdictTexts(t *testing.T) {
	const file = "testdata/verdicts/texts"
	var got strings.Builder
	for _, recording := range append(recordingsIn(t, "testdata/verdicts"), recordingsIn(t, "testdata")...) {
		_, closing := runOK(t, "-r", recording, "-o", "/dev/null", "-format", "csv")
		// A filter that all pass changes nothing.
		_, filtered := runOK(t, "-r", recording, "-o", "/dev/null", "-format", "csv", "-cgroup", "/")
		i := regexp.MustCompile(`(?m)^(limits hit|out of memory)`).FindStringIndex(closing)
		if i != nil && !strings.HasSuffix(filtered, closing[i[0]:]) {
			t.Errorf("%s: with -cgroup /\n%s\nwithout\n%s", recording, filtered, closing)
		}
		if i == nil {
			t.Fatalf("%s: %s", recording, closing)
		}
		fmt.Fprintf(&got, "-- %s --\n%s\n", filepath.Base(recording), closing[i[0]:])
	}
	golden.Compare(t, file, got.String())
}

// sumsOfEvents adds up the events of a .jsonl.
func sumsOfEvents(t *testing.T, jsonl string) (f figures) {
	t.Helper()
	for line := range strings.Lines(jsonl) {
		var e struct {
			Type, Outcome, Kind string
			Requested           int64 `json:"requested_pages"`
			Freed               int64 `json:"freed_pages"`
			Nanos               int64 `json:"duration_ns"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		switch e.Type {
		case "charge":
			f.charges++
			switch e.Outcome {
			case "ok":
				if e.Kind != "memsw" { // it counts the same pages as memory
					f.chargedPages += e.Requested
				}
			case "failed":
				f.failures++
			case "miss":
				f.misses++
			}
		case "reclaim_end":
			f.reclaims++
			f.freedPages += e.Freed
			f.reclaimNanos += e.Nanos
		case "oom_kill":
			f.kills++
		}
	}
	return f
}

// grouped writes a number below a million with its thousands apart.
func grouped(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
