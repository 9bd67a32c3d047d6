package main

const usage = `Usage: chargetrace [flags] [-- command [arg ...]]

Shows each charge of memory to a cgroup: who asked, for how many pages, how
many are charged, and the limit. Rows at the limit end in *. At the end, a
summary by cgroup and process, the limits that were hit, and the OOM kills.

Examples:
  sudo chargetrace -memory 10M -- ./alloc  run ./alloc with 10 MiB, and see it fail
  sudo chargetrace -pid 4711               what process 4711 charges, to its exit
  sudo chargetrace -pid 4711 -f            and what it forks
  sudo chargetrace -cgroup leaky.service   what is charged to a unit, and below
  sudo chargetrace -pod 'shop/cart-*'      to pods, and to those that replace them
  sudo chargetrace -pid 4711,4712 -n 100   the first 100 charges of two processes
  sudo chargetrace -for 10s -time clock    all charges of ten seconds
  sudo chargetrace -limited -wide          whatever hits a limit, at which level
  sudo chargetrace -watch                  a live screen: what fills up, how fast
  sudo chargetrace -o oom.ctrace           record, for a look at any time, anywhere:
  chargetrace -r oom.ctrace -limited       with flags as above
  chargetrace -r oom.ctrace -o oom.html    a report to look at in a browser
  sudo chargetrace -keep-last 60s -o /var/lib/chargetrace/
                                           the minute before each OOM kill
  chargetrace -check                       can this kernel be traced by this user?

Where from:
  -r FILE           a recording instead of the running kernel; - is stdin;
                    repeatable, one after the other. Needs no root
  -from TIME        from then on: since the start, as in 90s, or 15:04:05
  -to TIME          up to then
  -follow           at its end, wait for what is still being recorded
  -diff FILE        compare what -r plays with this recording, by cgroup, process
                    and kind of counter: a table, or a page, with -o FILE.html

What to run:
  -- COMMAND [ARG ...]
                    what it charges from its start on, and all that it forks;
                    ends when it does, with its exit status. Under sudo it runs
                    as the user who called
  -user NAME        as this user, or the one of this number; root stays root
  -memory SIZE      in a cgroup of its own with this limit, as in 10M or 1g. At
                    the end chargetrace kills the processes left there, and
                    removes it
  -swap SIZE        with this limit of swap there; 0 is none
  -high SIZE        slowed down from this size on there (cgroup v2)

What to trace (all that is asked for must hold, and of what is repeated, any):
  -pid N[,N...]     repeatable; these processes only; ends when the last has
                    exited
  -f                and what they fork, or have forked
  -comm GLOB        repeatable; threads of that name only, as in 'java' or
                    'kworker/*'
  -cgroup PATH|UNIT
                    repeatable; charges to that cgroup or one below it: a path as
                    in /proc/PID/cgroup, or with /sys/fs/cgroup before it; ends
                    when the last is removed. Or a systemd unit, as in
                    leaky.service or 'nginx@*.service', however often it starts
  -container ID|NAME
                    repeatable; likewise of a container: the beginning of its id,
                    at least 4 digits; ends when it is removed. Or its name or a
                    pattern, as in 'web-*', also of containers created later
  -pod NAMESPACE/POD
                    repeatable; likewise of a Kubernetes pod, by name or pattern,
                    as in 'shop/cart-*', without NAMESPACE/ in any namespace; also
                    of pods created later
  -namespace NAME   repeatable; likewise of all pods in a namespace
  -counter KIND[,KIND...]
                    these kinds of counters only: memory, swap, hugetlb,
                    hugetlb_rsvd, dmem, and of cgroup v1 memsw, kmem, tcpmem
  -min-pages N      only charges of so many pages or more
  -limited          only charges that failed, found a limit reached, or were
                    throttled (above memory.high)
  -misses           with -limited: batch misses too, which the kernel retries
                    smaller at once

When to stop (Ctrl-C and SIGTERM always do; a command gets them too):
  -for DURATION     after this time, as in 90s or 5m; a command goes on, and is
                    waited for
  -n ROWS           after this many rows; likewise

What to show:
  -stack            what each charge was for, by its kernel stack: CAUSE in -wide,
                    a line in -watch, plots in .html, and a table at the end
  -ustack           where in the program it was, by its user stack: for .pb.gz,
                    .folded, .html and .jsonl. Needs frame pointers
  -net              also what is given back, and what is charged whatever the
                    limit: at the end the net growth of each cgroup, beside that
                    of its memory.current
  -wide             for each charge also the thread, the kind of counter, what
                    came of it, the cgroup that pays, the level of the tree
                    with the least room, and how much; and reclaim. As wide as
                    the terminal or $COLUMNS, 120 at least
  -watch            for a terminal: a screen of the cgroups, how far each is from
                    its limit and when it will be there, and who charges it; ?
                    explains it. Elsewhere a line each second. A command has no
                    terminal beside the screen; what it prints comes afterwards
  -units UNITS      pages, bytes, or human: 3.9M, rounded down. The default is pages
                    in tables, MiB in sentences and reports, human for -watch
  -time FORMAT      relative: since the start, in the table in milliseconds
                    (default), clock: 15:04:05.000000, or date: with the date and
                    zone

Where to (the table on stdout, if nothing else is asked for):
  -o FILE           repeatable; the ending says the form: .ctrace, a recording
                    for -r, .html, a report, .svg or .png, its main plot, .json,
                    the summary, .jsonl, .csv, or .pftrace, for Perfetto; of stacks
                    .pb.gz, for pprof, or .folded, for flame graphs; - is stdout
  -format FORM      for other endings and for -: table (default for -), ctrace,
                    json, jsonl, csv, pftrace, html, svg, png, pb.gz, folded
  -force            overwrite files
  -rotate SIZE|DURATION
                    go on in another recording after so much, as in 100M, or 1h:
                    x-1.ctrace, x-2.ctrace, ..., after the last that is there.
                    Without another output there is no summary at the end
  -keep N           keep the last N recordings of -rotate, or of -keep-last

The flight recorder:
  -keep-last DURATION[,SIZE]
                    keep the last DURATION of events in memory, as in 60s, or
                    60s,64M with its size (default 64M), and save them when
                    something happens, as oom-20261129T170625Z-NAME.ctrace, for
                    -r, in the directory of -o DIR/. SIGUSR2 saves them too, and
                    without a terminal SIGHUP
  -when REASON[,REASON...]
                    repeatable; when to save: oom, an OOM kill; limit, a charge
                    at its limit; high, a charge throttled by memory.high; N%, as
                    in 95%, usage reaches this part of the memory limit; lost,
                    lost events; exit, the end of the trace (default oom,limit)
  -after DURATION   keep recording this long after it (default 2s). Further reasons
                    in that cgroup extend it, to at most that of -keep-last
  -every DURATION   save at most one recording of a cgroup in this time (default
                    1m). A graver reason still saves one: oom, N%, limit, high, in
                    this order
  -keep-size SIZE   remove the oldest recordings of -rotate or -keep-last beyond
                    this size; for -keep-last the default is 1G, or none with
                    -keep. A renamed recording is never removed
  -report           save a page beside each recording
  -exec COMMAND     run this command for each recording, without a shell. Sets
                    CHARGETRACE_FILE, _REASON, _CGROUP, _CONTAINER, _POD,
                    _NAMESPACE, _PID and _VERDICT in its environment, and expands
                    them in its arguments: 'logger -- $CHARGETRACE_VERDICT'. At N%
                    it runs at once, while the process is alive, and before there
                    is a file. One at a time, for 30 s at most
  -grace SIZE       at N%, raise the limits that the process is about to reach by
                    this much until the command has ended

The kernel:
  -attach HOW       kprobe, fentry for kernels without kprobes, or auto: whichever
                    works. The default is kprobe, and fentry for the hooks that
                    only -net needs, if the kernel has it. fentry costs less, but
                    a kernel that preempts itself can skip its programs
  -buffer SIZE      between kernel and chargetrace, as in 512K (default 2M);
                    rounded up to a power of two of pages
  -root DIR         where this machine's root directory is mounted, if chargetrace
                    runs in a container: names of containers and pods come from
                    files of their runtimes, such as /var/log/containers
  -check            print what this kernel and this user offer, and what to do
                    about each lack; exit 0 if a trace would start

  -completion SHELL
                    print what completes all this in bash, zsh or fish
  -version          print the version
  -h                print this text

Data goes to stdout, everything else to stderr. Exit status: 0, 1 for an
error, 2 for wrong usage; or the command's, 128+N if signal N killed it, 126 if
it cannot be run, 127 if there is none.
`
