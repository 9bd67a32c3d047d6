{{define "value"}}
	{{- if eq .Name "counter"}}_values -s , value {{join .Words " "}}
	{{- else if .Words}}({{join .Words " "}})
	{{- else if eq .Name "cgroup"}}_chargetrace_cgroups
	{{- else if eq .Name "diff" "r"}}_files -g "*.ctrace"
	{{- else if eq .Name "o"}}_files
	{{- else if eq .Name "pid"}}_sequence _chargetrace_pids
	{{- else if eq .Name "user"}}_users
	{{- else}}{{/* completes nothing */}} {{end}}
{{- end -}}
#compdef chargetrace
# Completion of chargetrace(1) for zsh.

# _pids completes processes of this terminal only.
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
		_arguments :{{range .}} \
			'{{if .Repeatable}}*{{end}}-{{.Name}}[{{zsh .Short}}]{{if .Value}}:{{zsh .Value}}:{{template "value" .}}{{end}}'{{end}}
	fi
}

# Sourced, or loaded from $fpath.
if [[ $funcstack[1] == _chargetrace ]]; then
	_chargetrace "$@"
else
	compdef _chargetrace chargetrace
fi
