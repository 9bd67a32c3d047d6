package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"chargetrace/internal/capture"
	"chargetrace/internal/event"
	"chargetrace/internal/help"
	"chargetrace/internal/table"
	"chargetrace/internal/text"
)

// shells are the values of -completion.
var shells = []string{"bash", "zsh", "fish"}

func parseShell(s string) (string, error) {
	if !slices.Contains(shells, s) {
		return "", badValue("bash, zsh or fish")
	}
	return s, nil
}

// completer is how each shell completes the value of a flag: a command of bash,
// an action of zsh's _arguments, options of fish's complete.
type completer struct{ bash, zsh, fish string }

var recordingFiles = completer{`_chargetrace_recordings`, `_files -g "*.ctrace"`, `-xka '(__fish_complete_suffix .ctrace)'`}

// completers are those of the flags with values of which something is known.
var completers = map[string]completer{
	"attach":     oneOf(capture.AllAttach),
	"cgroup":     {`_chargetrace_cgroups`, `_chargetrace_cgroups`, `-xa '(__chargetrace_cgroups)'`},
	"completion": oneOf(shells),
	"counter":    listOf(event.KindNames()),
	"diff":       recordingFiles,
	"format":     oneOf(formats),
	"o":          {`compopt -o default`, `_files`, `-rF`},
	"pid":        {`_chargetrace_list "$(cd /proc && echo [0-9]*)"`, `_sequence _chargetrace_pids`, `-xa '(__fish_append , (__fish_complete_pids))'`},
	"r":          recordingFiles,
	"time":       oneOf(table.AllTimeFormats),
	"units":      oneOf(text.AllUnits),
	"user":       {`_chargetrace_words "$(compgen -u)"`, `_users`, `-xa '(__fish_complete_users)'`},
}

// oneOf completes one of some words.
func oneOf[S ~string](values []S) completer {
	var words []string
	for _, v := range values {
		words = append(words, string(v))
	}
	all := strings.Join(words, " ")
	return completer{"_chargetrace_words '" + all + "'", "(" + all + ")", "-xa '" + all + "'"}
}

// listOf completes a comma-separated list of words.
func listOf(words []string) completer {
	all := strings.Join(words, " ")
	return completer{"_chargetrace_list '" + all + "'", "_values -s , value " + all, "-xa '(__fish_append , " + all + ")'"}
}

// completion returns the script that makes a shell complete the flags.
func completion(shell string) string {
	flags := help.Parse(usage).Flags()
	switch shell {
	case "zsh":
		return zshCompletion(flags)
	case "fish":
		return fishCompletion(flags)
	}
	return bashCompletion(flags)
}

func bashCompletion(flags []help.Flag) string {
	var cases strings.Builder
	var names []string
	for _, f := range flags {
		names = append(names, "-"+f.Name)
		if f.Value != "" {
			fmt.Fprintf(&cases, "\t-%s) %s ;;\n", f.Name, cmp.Or(completers[f.Name].bash, ":"))
		}
	}
	fmt.Fprintf(&cases, "\t*) _chargetrace_words '%s' ;;\n", strings.Join(names, " "))
	return strings.Replace(bashScript, "FLAGS\n", cases.String(), 1)
}

const bashScript = `# Completion of chargetrace(1) for bash.

_chargetrace_words() {
	mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
}

_chargetrace_list() {
	local before=
	[[ $cur != *,* ]] || before=${cur%,*},
	mapfile -t COMPREPLY < <(compgen -P "$before" -W "$1" -- "${cur##*,}")
}

_chargetrace_recordings() {
	mapfile -t COMPREPLY < <(compgen -f -X '!*.ctrace' -- "$cur"; compgen -d -- "$cur")
	compopt -o filenames
	[[ ${COMPREPLY[0]} ]] || compopt -o default
}

_chargetrace_cgroups() {
	local root=/sys/fs/cgroup
	[[ $cur != $root/* ]] || root=
	mapfile -t COMPREPLY < <(compgen -d -S / -- "$root${cur:-/}")
	COMPREPLY=("${COMPREPLY[@]#"$root"}")
	compopt -o filenames -o nospace
}

_chargetrace() {
	local cur=${COMP_WORDS[COMP_CWORD]} flag=${COMP_WORDS[COMP_CWORD-1]} i
	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		[[ ${COMP_WORDS[i]} == -- ]] || continue
		if declare -F _comp_command_offset >/dev/null; then
			_comp_command_offset $((i + 1))
		elif declare -F _command_offset >/dev/null; then
			_command_offset $((i + 1)) # bash-completion before 2.12
		elif ((COMP_CWORD == i + 1)); then
			mapfile -t COMPREPLY < <(compgen -c -- "$cur")
		else
			compopt -o default
		fi
		return
	done
	# In COMP_WORDS, -flag=value is three words.
	if [[ $cur == = ]]; then
		cur=
	elif [[ $flag == = ]]; then
		flag=${COMP_WORDS[COMP_CWORD-2]}
	fi
	case ${flag/#--/-} in
FLAGS
	esac
}

complete -F _chargetrace chargetrace
`

func zshCompletion(flags []help.Flag) string {
	escape := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`)
	var specs []string
	for _, f := range flags {
		spec := fmt.Sprintf("-%s[%s]", f.Name, escape.Replace(f.Short()))
		if f.Value != "" {
			// A blank action completes nothing.
			spec += fmt.Sprintf(":%s:%s", escape.Replace(f.Value), cmp.Or(completers[f.Name].zsh, " "))
		}
		if f.Repeatable() {
			spec = "*" + spec
		}
		specs = append(specs, " \\\n\t\t\t'"+strings.ReplaceAll(spec, "'", `'\''`)+"'")
	}
	return strings.Replace(zshScript, " FLAGS", strings.Join(specs, ""), 1)
}

const zshScript = `#compdef chargetrace
# Completion of chargetrace(1) for zsh.

# _pids has those of this terminal only.
_chargetrace_pids() {
	local -a pids=(${${${(f)"$(ps -e -o pid= -o comm=)"}## #}/ /:})
	_describe process pids "$@"
}

_chargetrace_cgroups() {
	if [[ $PREFIX == /sys/fs/cgroup/* ]]; then
		_files -/
	elif compset -P /; then
		_files -/ -W /sys/fs/cgroup
	else
		_files -/ -W /sys/fs/cgroup -P /
	fi
}

_chargetrace() {
	local dashes=${words[(i)--]}
	if (( dashes < CURRENT )); then
		shift dashes words
		(( CURRENT -= dashes ))
		_normal
	else
		_arguments : FLAGS
	fi
}

# Sourced, or loaded from $fpath.
if [[ $funcstack[1] == _chargetrace ]]; then
	_chargetrace "$@"
else
	compdef _chargetrace chargetrace
fi
`

func fishCompletion(flags []help.Flag) string {
	escape := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	var b strings.Builder
	b.WriteString(fishScript)
	for _, f := range flags {
		fmt.Fprintf(&b, "complete -c chargetrace -o %s", f.Name)
		if f.Value != "" {
			b.WriteString(" " + cmp.Or(completers[f.Name].fish, "-x"))
		}
		fmt.Fprintf(&b, " -d '%s'\n", escape.Replace(f.Short()))
	}
	return b.String()
}

const fishScript = `# Completion of chargetrace(1) for fish.

# The command after --, and what completes it.
function __chargetrace_command
	set -l before (commandline -opc)
	set -l dashes (contains -i -- -- $before)
	or return
	set -e before[1..$dashes]
	__fish_complete_subcommand --commandline $before (commandline -ct)
end

function __chargetrace_cgroups
	set -l root /sys/fs/cgroup
	set -l path (commandline -ct)
	string match -q "$root/*" -- $path
	and set root
	__fish_complete_directories $root$path | string replace -r "^$root" ''
end

complete -c chargetrace -f
complete -c chargetrace -a '(__chargetrace_command)'
`
