/* media/confine.c - see confine.h. */
#include "media/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define THREADS_OF_USER 8192

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1                       /* its shadow is terabytes of addresses, and it writes to standard error */
#else
#define SANITIZED 0
#endif

/* ---- limits --------------------------------------------------------------------------------------------- */

/* Bytes of addresses that are mapped already: the program and its libraries. */
static uint64_t mapped(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f != NULL && fscanf(f, "%llu", &pages) != 1) pages = 0;
    if (f != NULL) fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static status limit(int what, const char *name, rlim_t soft, rlim_t hard, struct err *e)
{
    struct rlimit old, r = { .rlim_cur = soft, .rlim_max = hard };
    if (getrlimit(what, &old) == 0 && old.rlim_max != RLIM_INFINITY) {        /* it can only be lowered */
        if (r.rlim_max == RLIM_INFINITY || r.rlim_max > old.rlim_max) r.rlim_max = old.rlim_max;
        if (r.rlim_cur == RLIM_INFINITY || r.rlim_cur > r.rlim_max) r.rlim_cur = r.rlim_max;
    }
    if (setrlimit(what, &r) == 0) return OK;
    return err_set(e, E_INTERNAL, "the limit %s cannot be set: %s", name, strerror(errno));
}

static status limits(const struct confine *c, struct err *e)
{
    TRY(limit(RLIMIT_CORE, "core", 0, 0, e));
    TRY(limit(RLIMIT_FSIZE, "fsize", 0, RLIM_INFINITY, e));       /* the parent raises it, and cannot be outbid */
    TRY(limit(RLIMIT_NPROC, "nproc", THREADS_OF_USER, THREADS_OF_USER, e));
    if (c->cpu_s > 0) TRY(limit(RLIMIT_CPU, "cpu", c->cpu_s, c->cpu_s + 1, e));
    if (c->memory_bytes > 0 && !SANITIZED) {
        const uint64_t bytes = mapped() + c->memory_bytes;
        TRY(limit(RLIMIT_AS, "as", bytes, bytes, e));
    }
    return limit(RLIMIT_NOFILE, "nofile", 0, 0, e);       /* what is open stays so */
}

/* ---- system calls --------------------------------------------------------------------------------------- */

/* Calls that need no look at their arguments. */
static const int PLAIN[] = {
    SCMP_SYS(read), SCMP_SYS(pread64), SCMP_SYS(readv), SCMP_SYS(lseek), SCMP_SYS(close),
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk),
    SCMP_SYS(futex), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(exit), SCMP_SYS(exit_group),
    SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(sigaltstack),
    SCMP_SYS(sched_getaffinity), SCMP_SYS(sched_yield), SCMP_SYS(gettid), SCMP_SYS(getpid),
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep), SCMP_SYS(gettimeofday), SCMP_SYS(time),
    SCMP_SYS(getrandom), SCMP_SYS(getrusage), SCMP_SYS(restart_syscall), SCMP_SYS(poll), SCMP_SYS(ppoll),
    SCMP_SYS(membarrier), SCMP_SYS(getcpu),
};

static int allow_writes(scmp_filter_ctx f, const struct confine *c)
{
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        if (c->stream_fd[i] < 0) continue;
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(write), 1,
                              SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)c->stream_fd[i]));
    }
    if (rc == 0 && SANITIZED)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(write), 1, SCMP_A0(SCMP_CMP_EQ, 2));
    if (rc == 0 && c->file_fd >= 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(pwrite64), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)c->file_fd));
    return rc;
}

static int allow(scmp_filter_ctx f, const struct confine *c)
{
    int rc = 0;
    for (size_t i = 0; i < sizeof PLAIN / sizeof *PLAIN && rc == 0; i++)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, PLAIN[i], 0);
    /* Memory of its own, never code: an open file is not mapped, the source least of all. */
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0),
                              SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS));
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* Threads, not processes. clone3 hides its flags in memory; told that there is none, libc takes clone. */
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                              SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM));
    if (rc == 0) rc = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (rc == 0) rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    if (rc == 0)                          /* abort() */
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
    /* A limit of its own may be asked for, not set. */
    if (rc == 0)
        rc = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, SCMP_A0(SCMP_CMP_EQ, 0),
                              SCMP_A2(SCMP_CMP_EQ, 0));
    return rc == 0 ? allow_writes(f, c) : rc;
}

status confine_enter(const struct confine *c, struct err *e)
{
    clearenv();
    TRY(limits(c, e));
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        return err_set(e, E_INTERNAL, "privileges cannot be given up: %s", strerror(errno));
    scmp_filter_ctx f = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (f == NULL) return err_set(e, E_NOMEM, "out of memory");
    int rc = seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2);    /* a tree: calls are many */
    if (rc == 0 || rc == -EOPNOTSUPP) rc = allow(f, c);
    if (rc == 0) rc = seccomp_load(f);
    seccomp_release(f);
    if (rc == 0) return OK;
    return err_set(e, E_INTERNAL, "the filter of system calls cannot be set up: %s", strerror(-rc));
}
