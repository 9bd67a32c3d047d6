package main

import (
	"flag"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/help"
)

// TestUsageHasFlags holds the flags that there are against those of -h and of
// the man page.
func TestUsageHasFlags(t *testing.T) {
	fs := flag.NewFlagSet("chargetrace", flag.ContinueOnError)
	if _, err := parseFlags(fs, nil); err != nil {
		t.Fatal(err)
	}
	var defined, described []string
	takesValue := make(map[string]bool)
	fs.VisitAll(func(f *flag.Flag) {
		// -help is for those who do not know of -h.
		if f.Name != "help" {
			defined = append(defined, f.Name)
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			takesValue[f.Name] = !ok || !b.IsBoolFlag()
		}
	})
	text := help.Parse(usage)
	page := text.Man()
	for _, f := range text.Flags() {
		described = append(described, f.Name)
		if f.Text == "" || (f.Value != "") != takesValue[f.Name] {
			t.Errorf("-h says of -%s: value %q, %q", f.Name, f.Value, f.Text)
		}
		if !strings.Contains(page, ".TP\n\\fB\\-"+strings.ReplaceAll(f.Name, "-", `\-`)+"\\fR") {
			t.Errorf("the man page lacks -%s", f.Name)
		}
	}
	for name := range completers {
		if !slices.Contains(defined, name) {
			t.Errorf("-%s is completed, but is no flag", name)
		}
	}
	slices.Sort(described)
	if !slices.Equal(defined, described) {
		t.Errorf("the flags are\n%q, in the usage text are\n%q", defined, described)
	}
}

func TestCompletionSyntax(t *testing.T) {
	for shell, check := range map[string]string{"bash": "-n", "zsh": "-n", "fish": "--no-execute"} {
		t.Run(shell, func(t *testing.T) {
			cmd := exec.Command(shell, check)
			cmd.Stdin = strings.NewReader(completion(shell))
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v (make tools-shells installs it)\n%s", err, out)
			}
		})
	}
}

func TestCompletionBash(t *testing.T) {
	for _, tc := range []struct{ words, want string }{
		{"-at", "-attach"},
		{"-attach f", "fentry"},
		{"--attach f", "fentry"},
		{"-attach =", "kprobe fentry auto"},
		{"-attach = f", "fentry"},
		{"-counter memory,sw", "memory,swap"},
		{"-for 10s -completion z", "zsh"},
		{"-n 1", ""},
		{"-- chargetrac -at", ""},
	} {
		// Outside of a completion there are no options of it to be set.
		script := completion("bash") + `
			compopt() { :; }
			COMP_WORDS=(chargetrace ` + tc.words + `) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
			_chargetrace
			echo "${COMPREPLY[*]}"`
		out, err := exec.Command("bash", "--norc", "-c", script).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v, want %q", tc.words, got, err, tc.want)
		}
	}
}
