package main

import (
	"flag"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chargetrace/internal/help"
)

// definedFlags returns the flags, and whether each takes a value.
func definedFlags(t *testing.T) (takesValue map[string]bool) {
	t.Helper()
	fs := flag.NewFlagSet("chargetrace", flag.ContinueOnError)
	if _, err := parseFlags(fs, nil); err != nil {
		t.Fatal(err)
	}
	takesValue = make(map[string]bool)
	fs.VisitAll(func(f *flag.Flag) {
		if f.Name != "help" { // -h is documented
			b, ok := f.Value.(interface{ IsBoolFlag() bool })
			takesValue[f.Name] = !ok || !b.IsBoolFlag()
		}
	})
	return takesValue
}

// TestUsageHasFlags compares the flags with -h and the man page.
func TestUsageHasFlags(t *testing.T) {
	takesValue := definedFlags(t)
	defined := slices.Sorted(maps.Keys(takesValue))
	var described []string
	text := help.Parse(usage)
	page := text.Man()
	for _, f := range text.Flags() {
		described = append(described, f.Name)
		if f.Text == "" || (f.Value != "") != takesValue[f.Name] {
			t.Errorf("-h has for -%s: value %q, text %q", f.Name, f.Value, f.Text)
		}
		if !strings.Contains(page, ".TP\n\\fB\\-"+strings.ReplaceAll(f.Name, "-", `\-`)+"\\fR") {
			t.Errorf("the man page lacks -%s", f.Name)
		}
	}
	slices.Sort(described)
	if !slices.Equal(defined, described) {
		t.Errorf("the flags are\n%q, in the usage text are\n%q", defined, described)
	}
}

// TestCompletionFlags compares the flags with those that each script completes, and those
// that the templates name.
func TestCompletionFlags(t *testing.T) {
	defined := definedFlags(t)
	withValue := maps.Clone(defined)
	maps.DeleteFunc(withValue, func(_ string, takesValue bool) bool { return !takesValue })
	find := func(pattern, text string) (names []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		slices.Sort(names)
		return names
	}
	const name = `([a-z-]+)`
	words := find(`\n\t\*\) _chargetrace_words '(.*)' ;;`, completion("bash"))
	for _, tc := range []struct {
		what string
		got  []string
		of   map[string]bool
	}{
		{"bash", find(` -`+name, " "+strings.Join(words, "")), defined},
		{"the values in bash", find(`\n\t-`+name+`\) `, completion("bash")), withValue},
		{"zsh", find(`'\*?-`+name+`\[`, completion("zsh")), defined},
		{"the values in zsh", find(`'\*?-`+name+`\[.*\]:`, completion("zsh")), withValue},
		{"fish", find(`\ncomplete -c chargetrace -o `+name+` `, completion("fish")), defined},
		{"the values in fish", find(`\ncomplete -c chargetrace -o `+name+` -(?:x|r)`, completion("fish")), withValue},
	} {
		if want := slices.Sorted(maps.Keys(tc.of)); !slices.Equal(tc.got, want) {
			t.Errorf("%s: completes\n%q, the flags are\n%q", tc.what, tc.got, want)
		}
	}
	for name := range flagWords {
		if !defined[name] {
			t.Errorf("-%s has words, but takes no value", name)
		}
	}
	for _, shell := range shells {
		script, err := completionScripts.ReadFile("completion." + shell)
		if err != nil {
			t.Fatal(err)
		}
		named := find(`eq \.Name ("[^}]*)}}`, string(script))
		if len(named) == 0 {
			t.Errorf("%s: the template names no flag", shell)
		}
		for _, name := range find(`"([^"]*)"`, strings.Join(named, " ")) {
			if !defined[name] {
				t.Errorf("%s: completes the value of -%s, which takes none", shell, name)
			}
		}
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
		// compopt fails outside a completion.
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
