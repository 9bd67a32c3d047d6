# CLANG is part of the generated files: gen.go names it too, and
# internal/guest/machine.go.
CLANG = 19

SUDO = $(if $(filter 0,$(shell id -u)),,sudo)
PREFIX = /usr/local
export CGO_ENABLED = 0

chargetrace: FORCE
	go build -trimpath -o $@ ./cmd/chargetrace

# One static binary, its man page, and what completes it in shells.
SHARE = $(DESTDIR)$(PREFIX)/share
install: chargetrace man
	install -D -m 755 chargetrace $(DESTDIR)$(PREFIX)/bin/chargetrace
	install -D -m 644 chargetrace.1 $(SHARE)/man/man1/chargetrace.1
	./chargetrace -completion bash | install -D -m 644 /dev/stdin $(SHARE)/bash-completion/completions/chargetrace
	./chargetrace -completion zsh | install -D -m 644 /dev/stdin $(SHARE)/zsh/site-functions/_chargetrace
	./chargetrace -completion fish | install -D -m 644 /dev/stdin $(SHARE)/fish/vendor_completions.d/chargetrace.fish

# The man page, of what -h prints.
man: chargetrace
	./chargetrace -h | go run ./internal/help/man > chargetrace.1

# The article's experiment: here, or in a virtual machine where this kernel
# cannot be traced, or one with the image KERNEL.
demo:
	go run ./internal/vm/demo $(if $(KERNEL),-kernel $(KERNEL))

# On every kernel. What failed is printed last. test-short boots no kernel. ROWS is a
# directory for the rows of the traces in machines of one CPU.
test: tools-bpf test-short cross
	go test -count=1 -timeout 80m -run '^TestRecord$$' ./internal/capture
	go test -count=1 -timeout 80m ./internal/guest $(if $(ROWS),-rows $(ROWS))

# The tests of the host run under the race detector, which needs a C compiler. TestConstantMemory
# measures the heap over 300,000 cgroups, which takes minutes there.
HOST = $$(go list ./... | grep -v /internal/guest)

# A number of inputs and no time: where that ends while a worker is busy, the
# fuzzing fails of it ("context deadline exceeded").
FUZZ = -fuzztime 20000x -fuzzminimizetime 1x
test-short: tools-shells tools-browser
	CGO_ENABLED=1 go test -race -skip '^(TestRecord|TestConstantMemory)$$' $(HOST)
	go test -count=1 -run '^TestConstantMemory$$' ./cmd/chargetrace
	go test -run '^$$' -fuzz FuzzSelectTypes $(FUZZ) ./internal/capture
	go test -run '^$$' -fuzz FuzzDecode $(FUZZ) ./internal/event
	go test -run '^$$' -fuzz FuzzAppendPrintable $(FUZZ) ./internal/event
	go test -run '^$$' -fuzz FuzzReader $(FUZZ) ./internal/trace
	go test -run '^$$' -fuzz FuzzBlock $(FUZZ) ./internal/trace
	go test -run '^$$' -fuzz FuzzJSONL $(FUZZ) ./internal/export
	go test -run '^$$' -fuzz FuzzELF $(FUZZ) ./internal/symbol
	go test -run '^$$' -fuzz FuzzMaps $(FUZZ) ./internal/symbol
	go test -run '^$$' -fuzz FuzzPerfMap $(FUZZ) ./internal/symbol
	go test -run '^$$' -fuzz FuzzName $(FUZZ) ./internal/symbol

# All that plays recordings, and its tests, compiles for other systems; what traces, for
# other architectures.
CROSS = darwin/arm64 windows/amd64 linux/ppc64le linux/riscv64 linux/s390x
cross:
	for t in $(CROSS); do GOOS=$${t%/*} GOARCH=$${t#*/} go vet ./... || exit; done

# Instructions for each charge, in a virtual machine with the kernel KERNEL, such as
# 7.2-amd64, and Go's benchmarks.
bench: tools-bpf
	go test -timeout 40m -run '^$$' -bench . -benchtime 1x ./internal/guest $(if $(KERNEL),-kernel $(KERNEL))
	go test -run '^$$' -bench . ./cmd/chargetrace ./internal/event ./internal/export ./internal/symbol ./internal/table ./internal/summary ./internal/trace ./internal/watch

# The recordings that the tests of the host play, which are committed: one of each
# kernel, one of each way to run out, and one with the raw samples of the ring buffer.
recordings: tools-bpf
	UPDATE_RECORDINGS=1 go test -count=1 -timeout 40m -run '^Test(Recording$$|Verdict)' ./internal/guest
	UPDATE_RECORDINGS=1 go test -count=1 -timeout 40m -run '^TestRecord$$' ./internal/capture

# The picture of a report in the README.
screenshot: tools-browser
	UPDATE_SCREENSHOT=1 go test -count=1 -run '^TestReportInBrowser$$/^hands' ./cmd/chargetrace

# The BPF objects, which are committed.
generate: tools-bpf
	go generate ./...

# What CI checks beside the tests.
check: generate
	test -z "$$(gofmt -l .)"
	go vet ./...
	go tool staticcheck ./...
	git diff --exit-code -- 'internal/capture/bpf_*'

# What the scripts of -completion are for.
tools-shells:
	@{ command -v bash && command -v zsh && command -v fish ; } >/dev/null || \
	{ $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy --no-install-recommends bash zsh fish ; }

# What reports are looked at with.
tools-browser:
	@command -v chromium >/dev/null || \
	{ $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy --no-install-recommends chromium fonts-dejavu-core ; }

tools-bpf:
	@test -x /usr/bin/clang-$(CLANG) -a -x /usr/bin/llvm-strip-$(CLANG) -a -x /usr/bin/ld.lld-$(CLANG) -a -e /usr/include/bpf/bpf_tracing.h || \
	{ $(SUDO) apt-get update -q && $(SUDO) apt-get install -qy --no-install-recommends clang-$(CLANG) llvm-$(CLANG) lld-$(CLANG) libbpf-dev ; }

FORCE:
.PHONY: FORCE install man demo test test-short cross bench recordings screenshot generate check tools-shells tools-browser tools-bpf
