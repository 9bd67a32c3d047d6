// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * sys.h: the entry point, system calls and text output of workload.c. They need no C
 * library, and no headers of the target in a cross build.
 */

/* FRAME keeps a function in user stacks: it is not inlined, and makes no tail call. */
#define FRAME __attribute__((noinline, disable_tail_calls))

/* From include/uapi/linux, where they are the same for x86 and arm64. */
enum { AT_PHDR = 3, AT_PHNUM = 5, AT_PAGESZ = 6, PT_LOAD = 1, PF_W = 2, SIGCHLD = 17, CLONE_VFORK = 0x4000 };
enum { AT_FDCWD = -100, AT_REMOVEDIR = 0x200, O_RDONLY = 0, O_WRONLY = 1, O_CREAT = 0100, O_EXCL = 0200 };
enum { MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MAP_HUGETLB = 0x40000, MAP_HUGE_2MB = 21 << 26 };
enum { MAP_FIXED_NOREPLACE = 0x100000, PROT_READ = 1, PROT_WRITE = 2 };
enum { MADV_DONTNEED = 4, MADV_HUGEPAGE = 14, POSIX_FADV_RANDOM = 1 };
enum { CLOCK_MONOTONIC = 1, CLOCK_PROCESS_CPUTIME_ID = 2, TIMER_ABSTIME = 1 };
enum { PR_SET_NAME = 15, PR_SET_THP_DISABLE = 41, AF_INET = 2, SOCK_DGRAM = 2 };
enum { BPF_MAP_CREATE = 0, BPF_MAP_TYPE_ARRAY = 2 };
enum { IORING_OP_READ = 22, IORING_OFF_SQES = 0x10000000, MAP_SHARED = 1 };

struct program_header {
	unsigned int type, flags;
	long offset;
	char *address;
	long physical, file_size, size, align;
};

struct sockaddr_in {
	unsigned short family, port;
	unsigned char address[4], zero[8];
};

struct io_uring_params {
	unsigned int sq_entries, cq_entries, flags, others[7];
	struct {
		unsigned int head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
		long user_addr;
	} sq_off;
	long cq_off[5];
};

struct io_uring_sqe {
	unsigned char opcode, flags;
	unsigned short ioprio;
	int fd;
	long off, addr;
	unsigned int len, others[9];
};

struct clone_args {
	long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size;
};

/*
 * _start passes the initial stack pointer to start. The kernel clears the frame
 * pointer, so the chain of frames ends here.
 */
#if defined(__x86_64__)
enum {
	SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_mmap = 9, SYS_munmap = 11, SYS_writev = 20, SYS_madvise = 28,
	SYS_getpid = 39, SYS_socket = 41, SYS_connect = 42, SYS_bind = 49, SYS_execve = 59, SYS_wait4 = 61,
	SYS_prctl = 157, SYS_fadvise64 = 221, SYS_clock_gettime = 228, SYS_clock_nanosleep = 230, SYS_exit_group = 231,
	SYS_openat = 257, SYS_mkdirat = 258, SYS_unlinkat = 263, SYS_ppoll = 271, SYS_eventfd2 = 290, SYS_bpf = 321,
	SYS_io_uring_setup = 425, SYS_io_uring_enter = 426, SYS_clone3 = 435,
};

static inline long raw_syscall(long number, const long a[6])
{
	register long r10 asm("r10") = a[3], r8 asm("r8") = a[4], r9 asm("r9") = a[5];
	long result;

	asm volatile("syscall" : "=a"(result)
		     : "0"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

__attribute__((naked, noreturn)) void _start(void)
{
	asm("mov %rsp, %rdi; and $-16, %rsp; call start; hlt");
}
#elif defined(__aarch64__)
enum {
	SYS_eventfd2 = 19, SYS_mkdirat = 34, SYS_unlinkat = 35, SYS_openat = 56, SYS_close = 57, SYS_read = 63, SYS_write = 64, SYS_writev = 66,
	SYS_ppoll = 73, SYS_exit_group = 94, SYS_clock_gettime = 113, SYS_clock_nanosleep = 115, SYS_prctl = 167,
	SYS_getpid = 172, SYS_socket = 198, SYS_bind = 200, SYS_connect = 203, SYS_munmap = 215, SYS_execve = 221,
	SYS_mmap = 222, SYS_fadvise64 = 223, SYS_madvise = 233, SYS_wait4 = 260, SYS_bpf = 280,
	SYS_io_uring_setup = 425, SYS_io_uring_enter = 426, SYS_clone3 = 435,
};

static inline long raw_syscall(long number, const long a[6])
{
	register long x8 asm("x8") = number, x0 asm("x0") = a[0], x1 asm("x1") = a[1], x2 asm("x2") = a[2];
	register long x3 asm("x3") = a[3], x4 asm("x4") = a[4], x5 asm("x5") = a[5];

	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

__attribute__((naked, noreturn)) void _start(void)
{
	asm("mov x0, sp; bl start; brk 0");
}
#endif

/* sys makes a system call, and exits if it fails. */
#define sys(name, ...) check(#name ": errno ", raw_syscall(SYS_##name, (long[6]){ __VA_ARGS__ }))

static long length(const char *s)
{
	long n = 0;

	while (s[n])
		n++;
	return n;
}

static int equal(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return *a == *b;
}

/* print writes two texts and a newline in one system call. */
static void print(int fd, const char *a, const char *b)
{
	long parts[] = { (long)a, length(a), (long)b, length(b), (long)"\n", 1 };

	raw_syscall(SYS_writev, (long[6]){ fd, (long)parts, 3 });
}

__attribute__((noreturn)) static void quit(int status)
{
	for (;;)
		raw_syscall(SYS_exit_group, (long[6]){ status });
}

__attribute__((noreturn)) static void fail(const char *what, const char *detail)
{
	print(2, what, detail);
	quit(1);
}

/* decimal returns the digits of n, until the next call. */
static const char *decimal(unsigned long n)
{
	static char digits[21];
	char *p = digits + 20;

	do
		*--p = '0' + n % 10;
	while (n /= 10);
	return p;
}

static long check(const char *call, long result)
{
	if (result < 0)
		fail(call, decimal(-result));
	return result;
}

static long number(const char *s)
{
	long n = 0;

	for (; *s; n = n * 10 + *s++ - '0')
		if (*s < '0' || *s > '9')
			fail("not a number: ", s);
	return n;
}

/* read_line reads a line and keeps its first size - 1 bytes. It returns 0 at the end of stdin. */
static int read_line(char *line, int size)
{
	int n = 0;

	for (char c; sys(read, 0, (long)&c, 1) == 1;) {
		if (c == '\n') {
			line[n] = 0;
			return 1;
		}
		if (n < size - 1)
			line[n++] = c;
	}
	return 0;
}

static void wait_for_line(void)
{
	char line[1];

	if (!read_line(line, sizeof(line)))
		fail("end of stdin", "");
}

static long nanoseconds(int clock)
{
	long ts[2];

	sys(clock_gettime, clock, (long)ts);
	return ts[0] * 1000000000 + ts[1];
}

/*
 * in_child calls f in a child, and waits for it. The child gets the number pid, or any
 * for 0. With CLONE_VFORK the parent stops until the child has exited or executed a
 * program: so the child copies the pages that both write to, and the parent copies none.
 */
FRAME static void in_child(void (*f)(long), long i, int pid)
{
	int status = 0;
	struct clone_args clone = {
		.flags = CLONE_VFORK, .exit_signal = SIGCHLD, .set_tid = pid ? (long)&pid : 0, .set_tid_size = pid != 0,
	};
	long child = sys(clone3, (long)&clone, sizeof(clone));

	if (child == 0) {
		f(i);
		quit(0);
	}
	sys(wait4, child, (long)&status);
	if (status)
		fail("wait status of a child: ", decimal(status));
}

static long page_size;
static char **environment;
static const struct program_header *program_headers;
static long program_headers_number;

int main(int argc, char **argv);

/* start finds argc, argv, the environment and the auxiliary vector on the stack. */
FRAME __attribute__((used)) static void start(long *sp)
{
	long *aux = sp + sp[0] + 2;

	environment = (char **)aux;
	while (*aux++)
		;
	for (; aux[0]; aux += 2) {
		if (aux[0] == AT_PHDR)
			program_headers = (void *)aux[1];
		else if (aux[0] == AT_PHNUM)
			program_headers_number = aux[1];
		else if (aux[0] == AT_PAGESZ)
			page_size = aux[1];
	}
	quit(main(sp[0], (char **)sp + 1));
}
