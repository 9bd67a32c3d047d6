package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

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
