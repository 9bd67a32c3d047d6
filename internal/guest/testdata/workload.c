// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * workload.c: the processes that the guest tests trace.
 *
 *	workload WORK [ARG ...]		see works[] and the protocol below
 *	workload -now WORK [ARG ...]	works at once, and exits
 *	workload			-now once
 *	alloc				-now touch 20 (by the name of the file)
 *
 * Protocol: prepare the work, write "ready", read a line, work, write the CPU
 * time of the work in nanoseconds, read to the end of stdin, exit with 0. An
 * error is one line on stderr and exit status 1.
 *
 * Between "ready" and the CPU time, the cgroup is charged only for the work:
 * - There is no C library, no second thread, no vDSO call.
 * - The pages of the program and its stack are present (prefault).
 * - Anonymous memory extends one mapping at a fixed address. It needs no new
 *   struct vm_area_struct, and page tables of the lowest level only (map).
 * - The line with the CPU time reuses the page of a pipe that "ready" was read
 *   from (tmp_page in struct pipe_inode_info).
 * - Transparent huge pages are off, except in thp. Children inherit this.
 */

#include "sys.h"

#define MIB (1L << 20)
#define BATCH (64 * page_size)			/* MEMCG_CHARGE_BATCH; 32 pages before Linux 6.1 */
#define HUGE_PAGE (page_size / 8 * page_size)	/* the bytes that a lowest-level page table maps */
#define BASE 0x820000000L			/* a multiple of HUGE_PAGE with 4, 16 and 64 KiB pages */

static char **args;	/* arguments of the work */
static long steps;	/* the number of its steps */
static char *memory;	/* memory and file are set by prepare, and used by the steps */
static long file;
static char *next_address = (char *)BASE;

/*
 * map maps the next addresses from BASE on. The page below BASE is mapped and
 * touched (prefault): anonymous memory extends that mapping (vma_merge), and the
 * page tables above the lowest level exist up to BASE + 512 MiB.
 */
static char *map(long size, int flags, long fd)
{
	char *p = next_address;

	sys(mmap, (long)p, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE | flags, fd);
	next_address += size;
	return p;
}

static char *map_memory(long size)
{
	return map(size, MAP_ANONYMOUS, -1);
}

/* touch takes the page fault, one call below the functions that a profile compares. */
FRAME static void touch(volatile char *p)
{
	*p = 1;
}

FRAME static void touch_pages(char *p, long size)
{
	for (long i = 0; i < size; i += page_size)
		touch(p + i);
}

FRAME static char *map_touched(long size)
{
	char *p = map_memory(size);

	touch_pages(p, size);
	return p;
}

FRAME static void touch_new(long i)
{
	map_touched(MIB);
}

FRAME static void touch_old(long i)
{
	touch_pages(memory + i * MIB, MIB);
}

#define HEX_DIGIT(c) ((c) >= 'a' ? (c) - 'a' + 10 : (c) - '0')

/* prepare_named names the thread. The name may contain \n, \t, \\ and \xNN with lower-case digits. */
static void prepare_named(void)
{
	char name[16] = { 0 }; /* TASK_COMM_LEN */
	const char *s = args[1];

	for (int n = 0; *s && n < 15; n++) {
		char c = *s++;

		if (c == '\\' && *s) {
			c = *s++;
			if (c == 'x' && s[0] && s[1]) {
				c = HEX_DIGIT(s[0]) << 4 | HEX_DIGIT(s[1]);
				s += 2;
			} else {
				c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
			}
		}
		name[n] = c;
	}
	sys(prctl, PR_SET_NAME, (long)name);
}

FRAME static void steady(long i)
{
	long at = nanoseconds(CLOCK_MONOTONIC);

	for (long left = number(args[0]) * MIB; left > 0; left -= BATCH) {
		at += number(args[1]) * 1000000;
		sys(clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, (long)(long[]){ at / 1000000000, at % 1000000000 });
		map_touched(BATCH);
	}
}

/*
 * The stacks of a profile are _start;start;main;profile;fill;fill_three;touch and
 * the same with fill_one.
 *
 * In each round, fill_three charges three batches and fill_one charges one. If the
 * CPU has r pages of the cgroup in stock, 0 to 63, then pages r+1, r+65 and r+129
 * of 256 charge a batch in fill_three, page r+193 in fill_one, and r pages are
 * left. With batches of 32 it is twice as many. Another cgroup's charge on this
 * CPU between two pages can drain the stock (refill_stock) and change that.
 */
FRAME static void fill_three(char *p)
{
	for (long i = 0; i < 3 * BATCH; i += page_size)
		touch(p + i);
}

FRAME static void fill_one(char *p)
{
	for (long i = 0; i < BATCH; i += page_size)
		touch(p + i);
}

FRAME static void fill(char *p)
{
	fill_three(p);
	fill_one(p + 3 * BATCH);
}

/*
 * prepare_profile makes the page tables: it touches a page of each and gives it
 * back. Since Linux 6.14, MADV_DONTNEED frees the page table too, but not for less
 * than HUGE_PAGE bytes (reclaim_pt_is_enabled).
 */
static void prepare_profile(void)
{
	memory = map_memory(steps * 4 * BATCH);
	for (char *p = memory; p < next_address; p += HUGE_PAGE) {
		touch(p);
		sys(madvise, (long)p, page_size, MADV_DONTNEED);
	}
}

FRAME static void profile(long i)
{
	fill(memory + i * 4 * BATCH);
}

FRAME static void once(long i)
{
	fill(map_memory(4 * BATCH));
}

FRAME static void fills(void)
{
	print(1, "ready", "");
	for (char line[8]; read_line(line, sizeof(line));) {
		long begin = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);

		if (equal(line, "fork"))
			in_child(once, 0, 0);
		else if (equal(line, "fill"))
			once(0);
		else
			fail("neither fill nor fork: ", line);
		print(1, decimal(nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - begin), "");
	}
}

FRAME static void release(long i)
{
	long size = number(args[0]) * MIB;
	char *p = map_touched(size);

	print(1, "touched", "");
	wait_for_line();
	sys(munmap, (long)p, size);
}

FRAME static void churn(long i)
{
	next_address = map_touched(8 * MIB);
	sys(munmap, (long)next_address, 8 * MIB);
}

static void prepare_storm(void)
{
	memory = map_touched(page_size);
}

FRAME static void storm(long i)
{
	sys(madvise, (long)memory, page_size, MADV_DONTNEED);
	touch(memory);
}

static void prepare_thp(void)
{
	sys(prctl, PR_SET_THP_DISABLE, 0);
	memory = map_memory(steps * HUGE_PAGE);
	sys(madvise, (long)memory, steps * HUGE_PAGE, MADV_HUGEPAGE);
}

FRAME static void thp(long i)
{
	touch(memory + i * HUGE_PAGE);
}

FRAME static void hugetlb(long i)
{
	if (i == 0)
		memory = map(steps * 2 * MIB, MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1);
	touch(memory + i * 2 * MIB);
}

static void prepare_swapin(void)
{
	memory = map_touched(steps * MIB);
}

static void open_file(long flags)
{
	file = sys(openat, AT_FDCWD, (long)args[0], flags, 0600);
	memory = map_touched(MIB);
}

/* prepare_read turns off readahead beyond the bytes of each read. */
static void prepare_read(void)
{
	open_file(O_RDONLY);
	sys(fadvise64, file, 0, 0, POSIX_FADV_RANDOM);
}

FRAME static void read_file(long i)
{
	for (long left = MIB, n; left > 0; left -= n) {
		n = sys(read, file, (long)memory, left);
		if (n == 0)
			fail("too short: ", args[0]);
	}
}

static void prepare_write(void)
{
	open_file(O_WRONLY | O_CREAT);
}

FRAME static void write_file(long i)
{
	for (long left = MIB; left > 0;)
		left -= sys(write, file, (long)memory, left);
}

/* prepare_cow reads each page, so that the first write copies it from its page table entry. */
static void prepare_cow(void)
{
	memory = map(steps * MIB, 0, sys(openat, AT_FDCWD, (long)args[0], O_RDONLY));
	for (char *p = memory; p < next_address; p += page_size)
		(void)*(volatile char *)p;
}

static void prepare_directory(void)
{
	file = sys(openat, AT_FDCWD, (long)args[0], O_RDONLY);
}

FRAME static void create_file(long i)
{
	sys(close, sys(openat, file, (long)decimal(i), O_CREAT | O_EXCL | O_WRONLY, 0600));
}

FRAME static void make_directory(long i)
{
	sys(mkdirat, file, (long)decimal(i), 0755);
}

static void remove_directory(long i)
{
	sys(unlinkat, file, (long)decimal(i), AT_REMOVEDIR);
}

FRAME static void bpfmap(long i)
{
	/* type, key_size, value_size and max_entries of union bpf_attr */
	unsigned int attr[4] = { BPF_MAP_TYPE_ARRAY, 4, 4096, number(args[0]) * MIB / 4096 };

	sys(bpf, BPF_MAP_CREATE, (long)attr, sizeof(attr));
}

static struct {
	struct io_uring_params params;
	char *ring;
	struct io_uring_sqe *requests;
	long fd, event;
} uring;

static void prepare_uring(void)
{
	struct io_uring_params *p = &uring.params;

	uring.fd = sys(io_uring_setup, 16, (long)p);
	uring.event = sys(eventfd2, 0, 0);
	uring.ring = (char *)sys(mmap, 0, p->sq_off.array + p->sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, uring.fd, 0);
	uring.requests = (void *)sys(mmap, 0, p->sq_entries * sizeof(*uring.requests), PROT_READ | PROT_WRITE, MAP_SHARED, uring.fd, IORING_OFF_SQES);
}

/* request_read requests a read that never completes. */
FRAME static void request_read(long i)
{
	static long value;
	unsigned int *tail = (void *)(uring.ring + uring.params.sq_off.tail), slot = *tail % uring.params.sq_entries;

	uring.requests[slot] = (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = uring.event, .addr = (long)&value, .len = sizeof(value) };
	((unsigned int *)(uring.ring + uring.params.sq_off.array))[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	sys(io_uring_enter, uring.fd, 1, 0, 0, 0, 0);
}

static void execute(void)
{
	sys(execve, (long)args[0], (long)args, (long)environment);
}

/* execute_run executes FILE N ARG ... without the N. */
static void execute_run(long i)
{
	args[1] = args[0];
	args++;
	execute();
}

FRAME static void run(long i)
{
	in_child(execute_run, i, 0);
}

/* touch_batches touches more than the CPU can have in stock: 1 MiB of pages of 4 KiB. */
FRAME static void touch_batches(long i)
{
	map_touched(4 * BATCH);
}

FRAME static void fork_touch(long i)
{
	in_child(touch_batches, i, 0);
}

FRAME static void fork_as(long i)
{
	in_child(touch_batches, i, number(args[0]));
}

/* PORT is two arguments: the address of socket i of listen, and its size. */
#define PORT(i) (long)&(struct sockaddr_in){ AF_INET, __builtin_bswap16(40000 + (i)), { 127, 0, 0, 1 } }, 16

static void prepare_listen(void)
{
	for (long i = 0; i < steps; i++)
		sys(bind, sys(socket, AF_INET, SOCK_DGRAM), PORT(i));
}

static void prepare_send(void)
{
	file = sys(socket, AF_INET, SOCK_DGRAM);
}

FRAME static void send(long i)
{
	static char datagram[1400];

	sys(connect, file, PORT(i));
	for (int n = 0; n < 200; n++)
		sys(write, file, (long)datagram, sizeof(datagram));
}

FRAME static void do_nothing(long i)
{
}

FRAME static void spin(long i)
{
	for (;;)
		asm volatile("");
}

static void hold(void)
{
	print(1, "held ", decimal(sys(getpid)));
	for (;;)
		raw_syscall(SYS_ppoll, (long[6]){ 0 });
}

/* Without step, prepare does all the work and prints all output. */
static const struct work {
	const char *name;
	int args;	/* required arguments */
	int count;	/* the argument, from 1, that holds the number of steps; 0: one step */
	void (*prepare)(void);
	void (*step)(long i);
	const char *use;
	void (*finish)(long i); /* undoes step i at the end of stdin */
} works[] = {
	{ "touch", 1, 1, 0, touch_new, " SIZE: map SIZE MiB in pieces of 1 MiB, touch each page" },
	{ "named", 2, 1, prepare_named, touch_new, " SIZE NAME: touch, in a thread of this name" },
	{ "steady", 2, 0, 0, steady, " SIZE MS: touch 64 pages every MS milliseconds, SIZE MiB in all" },
	{ "profile", 1, 1, prepare_profile, profile, " ROUNDS: touch 3 batches in fill_three, 1 in fill_one" },
	{ "once", 0, 0, 0, once, ": one round of profile, page tables included" },
	{ "fills", 0, 0, fills, 0, ": ready, then once for each line \"fill\", in a child for \"fork\"" },
	{ "release", 1, 0, 0, release, " SIZE: touch SIZE MiB, write \"touched\", read a line, unmap" },
	{ "churn", 1, 1, 0, churn, " N: map, touch and unmap 8 MiB N times" },
	{ "storm", 1, 1, prepare_storm, storm, " N: give back and touch a page N times" },
	{ "thp", 1, 1, prepare_thp, thp, " N: touch N transparent huge pages" },
	{ "hugetlb", 1, 1, 0, hugetlb, " N: map and touch N hugetlb pages of 2 MiB" },
	{ "read", 2, 2, prepare_read, read_file, " FILE SIZE: read SIZE MiB" },
	{ "file", 2, 2, prepare_write, write_file, " FILE SIZE: write SIZE MiB" },
	{ "files", 2, 2, prepare_directory, create_file, " DIR N: create N empty files" },
	{ "cgroups", 2, 2, prepare_directory, make_directory, " DIR N: create N cgroups, remove them at the end",
	  remove_directory },
	{ "cow", 2, 2, prepare_cow, touch_old, " FILE SIZE: write to each page of a private mapping that it has read" },
	{ "swapin", 1, 1, prepare_swapin, touch_old, " SIZE: touch SIZE MiB before ready, and again" },
	{ "bpfmap", 1, 0, 0, bpfmap, " SIZE: create a BPF array of SIZE MiB" },
	{ "uring", 1, 1, prepare_uring, request_read, " N: request N reads that never complete through io_uring" },
	{ "run", 2, 2, 0, run, " FILE N [ARG ...]: run a program N times, one after the other" },
	{ "fork", 1, 1, 0, fork_touch, " N: fork N children that touch 256 pages each, one after the other" },
	{ "fork_as", 1, 0, 0, fork_as, " PID: fork a child of this number, which is free, that touches 256 pages" },
	{ "listen", 1, 1, prepare_listen, do_nothing, " N: hold N UDP sockets that nobody reads" },
	{ "send", 1, 1, prepare_send, send, " N: send 200 datagrams of 1400 bytes to each socket of listen N" },
	{ "spin", 0, 0, 0, spin, ": loop without an end" },
	{ "exec", 1, 0, execute, 0, " FILE [ARG ...]: execute a program" },
	{ "pause", 0, 0, hold, 0, ": write \"held PID\", wait for a signal" },
	{ 0 },
};

/* find_work finds the work that args names, and removes the name. */
static const struct work *find_work(void)
{
	const struct work *w;
	long n = 0;

	while (args[n])
		n++;
	for (w = works; n > 0 && w->name; w++)
		if (equal(w->name, args[0]) && n > w->args) {
			args++;
			return w;
		}
	print(2, "usage: workload [-now] WORK [ARG ...]", "");
	for (w = works; w->name; w++)
		print(2, w->name, w->use);
	quit(1);
}

/* prefault touches the stack, the program, and the page below BASE. */
__attribute__((noinline)) static void prefault(void)
{
	volatile char stack[8192];

	stack[0] = stack[4096] = 0;
	for (const struct program_header *h = program_headers; h < program_headers + program_headers_number; h++) {
		if (h->type != PT_LOAD)
			continue;
		for (long p = (long)h->address & -page_size; p < (long)h->address + h->size; p += page_size) {
			char c = *(volatile char *)p;

			if (h->flags & PF_W)
				*(volatile char *)p = c;
		}
	}
	next_address -= page_size;
	map_touched(page_size);
}

FRAME int main(int argc, char **argv)
{
	static char *alloc[] = { "-now", "touch", "20", 0 }, *nothing[] = { "-now", "once", 0 };
	const char *name = argv[0];

	prefault();
	sys(prctl, PR_SET_THP_DISABLE, 1);

	for (const char *p = name; *p; p++)
		if (*p == '/')
			name = p + 1;
	args = equal(name, "alloc") ? alloc : argc < 2 ? nothing : argv + 1;
	int now = equal(args[0], "-now");
	args += now;
	const struct work *work = find_work();
	steps = work->count ? number(args[work->count - 1]) : 1;

	if (work->prepare)
		work->prepare();
	if (!work->step)
		return 0;
	if (!now) {
		print(1, "ready", "");
		wait_for_line();
	}
	long begin = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	for (long i = 0; i < steps; i++)
		work->step(i);
	if (!now) {
		print(1, decimal(nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - begin), "");
		while (read_line((char[1]){ 0 }, 1))
			;
	}
	for (long i = 0; i < steps && work->finish; i++)
		work->finish(i);
	return 0;
}
