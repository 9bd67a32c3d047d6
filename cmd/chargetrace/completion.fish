{{define "value"}}
	{{- if eq .Name "counter"}}-xa '(__fish_append , {{join .Words " "}})'
	{{- else if .Words}}-xa '{{join .Words " "}}'
	{{- else if eq .Name "cgroup"}}-xa '(__chargetrace_cgroups)'
	{{- else if eq .Name "diff" "r"}}-xka '(__fish_complete_suffix .ctrace)'
	{{- else if eq .Name "o"}}-rF
	{{- else if eq .Name "pid"}}-xa '(__fish_append , (__fish_complete_pids))'
	{{- else if eq .Name "user"}}-xa '(__fish_complete_users)'
	{{- else}}-x{{end}}
{{- end -}}
# Completion of chargetrace(1) for fish.

# Completes the command after -- and its arguments.
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
{{range .}}complete -c chargetrace -o {{.Name}}{{if .Value}} {{template "value" .}}{{end}} -d '{{fish .Short}}'
{{end -}}
