/*
 * fill.c: a workload of the tests that is no Go program. Two functions touch
 * memory, one three times as much as the other. It stands alone, without a C
 * library.
 *
 * For each byte of its input it fills memory, and says when it has: for an f
 * in a child that is gone by then. Without any input it does so once, in a
 * small way, and is gone itself.
 */
#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, MMAP = 9, CLONE = 56, WAIT4 = 61, EXIT_GROUP = 231 };

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long result;

	asm volatile("syscall" : "=a"(result)
		     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, MMAP = 222, CLONE = 220, WAIT4 = 260, EXIT_GROUP = 94 };

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 asm("x8") = number, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c;
	register long x3 asm("x3") = d, x4 asm("x4") = e, x5 asm("x5") = f;

	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#endif

#define PAGE 4096
#define BATCH (64 * PAGE)
#define ROUNDS 100
#define SIGCHLD 17

/* The faults happen one call below the functions that are told apart. */
__attribute__((noinline)) static void touch(volatile char *p)
{
	*p = 1;
}

__attribute__((noinline)) static void fill_three(char *p)
{
	for (long i = 0; i < 3 * BATCH; i += PAGE)
		touch(p + i);
}

__attribute__((noinline)) static void fill_one(char *p)
{
	for (long i = 0; i < BATCH; i += PAGE)
		touch(p + i);
}

__attribute__((noinline)) static void fill(char *p, int rounds)
{
	for (int i = 0; i < rounds; i++, p += 4 * BATCH) {
		fill_three(p);
		fill_one(p + 3 * BATCH);
	}
}

static void fill_in_child(char *p)
{
	long child = call(CLONE, SIGCHLD, 0, 0, 0, 0, 0);

	if (child == 0) {
		fill(p, 1);
		call(EXIT_GROUP, 0, 0, 0, 0, 0, 0);
	}
	call(WAIT4, child, 0, 0, 0, 0, 0);
}

void _start(void)
{
	/* PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS */
	char *p = (char *)call(MMAP, 0, ROUNDS * 4L * BATCH, 3, 0x22, -1, 0);
	char c = 0;

	call(WRITE, 1, (long)"ready\n", 6, 0, 0, 0);
	while (call(READ, 0, (long)&c, 1, 0, 0, 0) == 1) {
		if (c == 'f')
			fill_in_child(p);
		else
			fill(p, ROUNDS);
		call(WRITE, 1, (long)"0\n", 2, 0, 0, 0);
	}
	if (c == 0)
		fill(p, 1);
	call(EXIT_GROUP, 0, 0, 0, 0, 0, 0);
}
