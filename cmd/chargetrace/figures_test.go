package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// figures are the sums of a trace.
type figures struct {
	charges, failures, misses, chargedPages, kills int64
	freedPages, reclaims, reclaimNanos             int64
}

// TestSameFigures plays recordings to all outputs at once. Each must have the same sums, and
// the same sentences on limits and OOM kills.
func TestSameFigures(t *testing.T) {
	recordings, err := filepath.Glob("testdata/*.ctrace")
	if err != nil || len(recordings) == 0 {
		t.Fatal(recordings, err)
	}
	for _, recording := range recordings {
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

		// One process charges to one cgroup.
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^/\S+ +- +%d +%d +%d +%d +\S+ \S+ +\S+ \S+ +%d$`, want.charges, want.chargedPages, want.failures, want.misses, want.freedPages))
		if !row.MatchString(closing) {
			t.Errorf("%s: no %s in the summary\n%s", recording, row, closing)
		}
		for _, figure := range []string{
			fmt.Sprintf("<dt>charges</dt><dd>%d</dd>", want.charges), fmt.Sprintf(`title="%s pages"`, grouped(want.chargedPages)),
			fmt.Sprintf("<dt>failed</dt><dd>%d</dd>", want.failures), fmt.Sprintf(`<dt>in reclaim</dt><dd title="%d runs">`, want.reclaims),
			fmt.Sprintf("<dt>OOM kill</dt><dd>%d</dd>", want.kills),
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
		killed := regexp.MustCompile(`OOM in /.*\)`)
		if inTable, onScreen := killed.FindString(table), killed.FindString(screen); inTable == "" || inTable != onScreen {
			t.Errorf("%s: the table has %q, the screen %q", recording, inTable, onScreen)
		}
	}
}

// sumsOfEvents adds up the events of a .jsonl.
func sumsOfEvents(t *testing.T, jsonl string) (f figures) {
	t.Helper()
	for line := range strings.Lines(jsonl) {
		var e struct {
			Type, Outcome string
			Requested     int64 `json:"requested_pages"`
			Freed         int64 `json:"freed_pages"`
			Nanos         int64 `json:"duration_ns"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		switch e.Type {
		case "charge":
			f.charges++
			switch e.Outcome {
			case "ok":
				f.chargedPages += e.Requested
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
