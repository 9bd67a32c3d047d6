package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports checks the imports between packages: data goes one way, and only the command
// connects sources and sinks.
func TestImports(t *testing.T) {
	const module = "chargetrace/internal/"
	allowed := map[string][]string{
		"event":             {},
		"glob":              {},
		"help":              {},
		"help/man":          {"help"},
		"stream":            {"event", "cgroup", "container", "glob"},
		"cgroup":            {"event", "container"},
		"cgroup/cgrouptest": {"event", "container"},
		"golden":            {},
		"container":         {},
		"symbol":            {"event"},
		"capture":           {"event", "stream", "symbol"},
		"launch":            {"event", "cgroup"},
		"sampler":           {"event", "stream", "cgroup", "container"},
		"text":              {},
		"cause":             {"event"},
		"world":             {"event", "stream", "cgroup", "cause"},
		"verdict":           {"event", "stream", "world", "container", "cgroup", "cause", "text"},
		"table":             {"event", "stream", "verdict", "container", "text"},
		"summary":           {"event", "stream", "world", "verdict", "container", "cause", "text"},
		"export":            {"event", "stream", "world", "container", "cause"},
		"report":            {"event", "stream", "world", "cgroup", "container", "verdict", "summary", "cause", "text"},
		"trace":             {"event", "stream"},
		"recorder":          {"event", "stream", "cgroup", "container", "trace", "verdict"},
		"watch":             {"event", "stream", "world", "cgroup", "container", "verdict", "summary", "cause", "text"},
		"vm":                {},
		"vm/demo":           {"vm"},
		"guest":             {"vm"},
		"guest/runpod":      {},
		"guest/leak":        {},
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
