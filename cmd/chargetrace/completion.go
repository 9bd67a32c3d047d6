package main

import (
	"embed"
	"slices"
	"strings"
	"text/template"

	"chargetrace/internal/capture"
	"chargetrace/internal/event"
	"chargetrace/internal/help"
	"chargetrace/internal/text"
)

// completionScripts are templates, executed with all flags of -h. The value template of
// each is how a shell completes the value of a flag.
//
//go:embed completion.bash completion.zsh completion.fish
var completionScripts embed.FS

// shells are the values of -completion.
var shells = []string{"bash", "zsh", "fish"}

func parseShell(s string) (string, error) {
	if !slices.Contains(shells, s) {
		return "", badValue("bash, zsh or fish")
	}
	return s, nil
}

// completedFlag is a flag as the templates see it.
type completedFlag struct {
	help.Flag
	Words []string // its values, if they are known
}

// flagWords are the values of flags that take one of a few words.
var flagWords = map[string][]string{
	"attach":     wordsOf(capture.AllAttach),
	"completion": shells,
	"counter":    event.KindNames(),
	"format":     formatNames(),
	"time":       wordsOf(text.AllTimeFormats),
	"units":      wordsOf(text.AllUnits),
	"when":       {"oom", "limit", "high", "95%", "lost", "exit"},
}

func wordsOf[S ~string](values []S) []string {
	var words []string
	for _, v := range values {
		words = append(words, string(v))
	}
	return words
}

// completion returns the script that makes a shell complete the flags.
func completion(shell string) string {
	t := template.New("completion." + shell).Funcs(template.FuncMap{
		"join": strings.Join,
		"zsh":  strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`, `'`, `'\''`).Replace,
		"fish": strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace,
	})
	template.Must(t.ParseFS(completionScripts, t.Name()))
	var flags []completedFlag
	for _, f := range help.Parse(usage).Flags() {
		flags = append(flags, completedFlag{f, flagWords[f.Name]})
	}
	var script strings.Builder
	if err := t.Execute(&script, flags); err != nil {
		panic(err) // the templates are part of the program
	}
	return script.String()
}
