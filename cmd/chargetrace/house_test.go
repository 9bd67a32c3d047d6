package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestImports checks the imports between packages: data goes one way, and only the command
// connects sources and sinks.
func TestImports(t *testing.T) {
	const module = "chargetrace/internal/"
	allowed := map[string][]string{
		"event":    {},
		"glob":     {},
		"help":     {},
		"help/man": {"help"},
		"stream":   {"event", "cgroup", "glob"},
		"cgroup":   {"event"},
		"symbol":   {"event"},
		"capture":  {"event", "stream", "glob", "symbol"},
		"launch":   {"event", "cgroup"},
		"sampler":  {"event", "stream", "cgroup"},
		"text":     {},
		"cause":    {"event"},
		"world":    {"event", "stream", "cgroup", "cause"},
		"table":    {"event", "stream", "world", "cgroup", "cause", "text"},
		"summary":  {"event", "stream", "world", "cgroup", "cause"},
		"export":   {"event", "stream", "world", "cgroup", "cause"},
		"report":   {"event", "stream", "world", "cgroup", "summary", "cause"},
		"trace":    {"event", "stream"},
		"watch":    {"event", "stream", "world", "cgroup", "summary", "cause", "text"},
		"vm":       {},
		"vm/demo":  {"vm"},
		"guest":    {"vm"},
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "chargetrace/internal/...").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name := strings.TrimPrefix(fields[0], module)
		may, known := allowed[name]
		if !known {
			t.Errorf("package %s: add its allowed imports here", name)
		}
		for _, imported := range fields[1:] {
			if inner, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(may, inner) {
				t.Errorf("%s must not import %s", name, inner)
			}
			if strings.HasPrefix(imported, "github.com/cilium/ebpf") && name != "capture" {
				t.Errorf("%s must not import %s", name, imported)
			}
			if name == "event" && strings.Contains(imported, ".") {
				t.Errorf("event must not import %s", imported)
			}
		}
	}
}

// TestReadmeHasUsage compares the README's list of flags with -h.
func TestReadmeHasUsage(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```\n"+usage+"```\n") {
		t.Error("the README does not contain the output of -h")
	}
}

// TestReadmeMake checks that the Makefile has each target that the README mentions.
func TestReadmeMake(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var targets int
	for line := range strings.Lines(string(readme)) {
		_, target, ok := strings.Cut(" "+line, " make ")
		if !ok || !strings.HasPrefix(strings.TrimLeft(line, " "), "make ") && !strings.HasPrefix(line, "sudo make ") {
			continue
		}
		targets++
		target = strings.Fields(target)[0]
		cmd := exec.Command("make", "--dry-run", target)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("make %s: %v\n%s", target, err, out)
		}
	}
	if targets < 3 {
		t.Errorf("the README mentions %d targets of make", targets)
	}
}

// TestReadmeLinks checks that each file that the README links to exists.
func TestReadmeLinks(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`\]\(([^)#]+)`).FindAllStringSubmatch(string(readme), -1)
	if len(links) < 10 {
		t.Errorf("%d links", len(links))
	}
	for _, link := range links {
		if _, err := os.Stat(filepath.Join("../..", link[1])); err != nil && !strings.Contains(link[1], "://") {
			t.Error(err)
		}
	}
}

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		status int
	}{
		{[]string{"-h"}, 0},
		{[]string{"-bogus"}, 2},
		{[]string{"-n", "-1"}, 2},
		{[]string{"what"}, 2},
		{[]string{"-pid", "2000000000"}, 1},
	} {
		if got := run(tc.args, nil, io.Discard, io.Discard); got != tc.status {
			t.Errorf("%q: exit status %d, want %d", tc.args, got, tc.status)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"3": 3, "4096": 4096, "512K": 512 << 10, "2m": 2 << 20, "1GiB": 1 << 30, "1Gi": 1 << 30, "5kb": 5 << 10,
		"": 0, "K": 0, "0": 0, "-1": 0, "1.5M": 0, "1MM": 0, "9999999999G": 0, "1 K": 0,
	} {
		got, err := parseSize(in)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}
