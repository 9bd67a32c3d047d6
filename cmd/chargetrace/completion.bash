{{define "value"}}
	{{- if eq .Name "counter"}}_chargetrace_list '{{join .Words " "}}'
	{{- else if .Words}}_chargetrace_words '{{join .Words " "}}'
	{{- else if eq .Name "cgroup"}}_chargetrace_cgroups
	{{- else if eq .Name "diff" "r"}}_chargetrace_recordings
	{{- else if eq .Name "o"}}compopt -o default
	{{- else if eq .Name "pid"}}_chargetrace_list "$(cd /proc && echo [0-9]*)"
	{{- else if eq .Name "user"}}_chargetrace_words "$(compgen -u)"
	{{- else}}:{{end}}
{{- end -}}
# Completion of chargetrace(1) for bash.

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
	# COMP_WORDS splits -flag=value into three words.
	if [[ $cur == = ]]; then
		cur=
	elif [[ $flag == = ]]; then
		flag=${COMP_WORDS[COMP_CWORD-2]}
	fi
	case ${flag/#--/-} in
{{- range .}}{{if .Value}}
	-{{.Name}}) {{template "value" .}} ;;
{{- end}}{{end}}
	*) _chargetrace_words '{{range $i, $f := .}}{{if $i}} {{end}}-{{.Name}}{{end}}' ;;
	esac
}

complete -F _chargetrace chargetrace
