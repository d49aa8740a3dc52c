/* The walls of confine.h hold from the inside: nothing opens, connects, starts, traces or maps, writing goes to the named
 * descriptors alone, and limits kill.
 * Method: a forked process goes behind the walls and tries; its exit status says what gave way. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "media/confine.h"
#include "tests/media/expected.h"

static int pipe_of[2], file_fd, other_fd;

/* The wait status of a process that does `job` behind walls c. */
static int behind(const struct confine *c, int (*job)(void))
{
    int how;
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct err e;
        if (confine_enter(c, &e) != OK) _exit(200);
        _exit(job());
    }
    assert_int_equal(waitpid(pid, &how, 0), pid);
    return how;
}

static int setup(void **state)
{
    (void)state;
    assert_int_equal(pipe(pipe_of), 0);
    file_fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    other_fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    assert_true(file_fd >= 0 && other_fd >= 0);
    return ftruncate(other_fd, 4096);
}

static struct confine walls(void)
{
    return (struct confine){ .stream_fd = { pipe_of[1], -1 }, .file_fd = file_fd };
}

/* What must be refused, with EPERM. Numbered from 1: the exit status. */
static int try_everything(void)
{
    char *const argv[] = { (char *)"true", NULL };
    struct rlimit more = { .rlim_cur = 1 << 20, .rlim_max = RLIM_INFINITY };
    struct stat s;
    char byte = 0;
    int n = 0;
#define REFUSED(call) n++; errno = 0; if ((long)(call) != -1 || errno != EPERM) return n
    REFUSED(open("/etc/passwd", O_RDONLY));                        /* 1 */
    REFUSED(openat(AT_FDCWD, ".", O_RDONLY));
    REFUSED(syscall(SYS_open, "/etc/passwd", O_RDONLY));
    REFUSED(syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", NULL, 0));
    REFUSED(socket(AF_INET, SOCK_STREAM, 0));                      /* 5 */
    REFUSED(socket(AF_UNIX, SOCK_STREAM, 0));
    REFUSED(execv("/bin/true", argv));
    REFUSED(fork());
    REFUSED(syscall(SYS_vfork));
    REFUSED(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));         /* 10 */
    REFUSED(kill(getppid(), 0));
    REFUSED(syscall(SYS_tgkill, getppid(), getppid(), 0));
    REFUSED(stat("/etc/passwd", &s));
    REFUSED(unlink("/tmp/there-is-none"));
    REFUSED(mkdir("/tmp/there-is-none/x", 0700));                  /* 15 */
    REFUSED(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, other_fd, 0));
    REFUSED(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REFUSED(mprotect((void *)((uintptr_t)&try_everything & ~4095ul), 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
    REFUSED(write(other_fd, &byte, 1));
    REFUSED(write(file_fd, &byte, 1));                             /* 20 */
    REFUSED(pwrite(other_fd, &byte, 1, 0));
    REFUSED(ftruncate(file_fd, 1 << 20));
    REFUSED(ftruncate(other_fd, 0));
    REFUSED(setrlimit(RLIMIT_FSIZE, &more));
    REFUSED(prlimit(getppid(), RLIMIT_FSIZE, &more, NULL));        /* 25 */
    REFUSED(fcntl(file_fd, F_DUPFD, 50));
    REFUSED(dup2(file_fd, pipe_of[1]));
    REFUSED(syscall(SYS_process_vm_writev, getppid(), NULL, 0, NULL, 0, 0));
    REFUSED(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    REFUSED(syscall(SYS_io_uring_setup, 1, NULL));                 /* 30 */
    REFUSED(syscall(SYS_pidfd_open, getppid(), 0));
    REFUSED(syscall(SYS_memfd_create, "x", 0));
    REFUSED(syscall(SYS_bpf, 0, NULL, 0));
    REFUSED(syscall(SYS_keyctl, 0, 0, 0, 0, 0));
    REFUSED(pipe(pipe_of));                                        /* 35 */
#undef REFUSED
    return getenv("PATH") == NULL ? 0 : 100;
}

static void refused(void **state)
{
    (void)state;
    const struct confine c = walls();
    const int how = behind(&c, try_everything);
    assert_true(WIFEXITED(how));
    if (WEXITSTATUS(how) != 0) fail_msg("attempt %d was not refused with EPERM", WEXITSTATUS(how));
}

static atomic_int sum;

static void *add(void *arg)
{
    atomic_fetch_add(&sum, (int)(intptr_t)arg);
    return NULL;
}

/* What decoding needs: threads, memory, time, reading, writing to what is named. */
static int work(void)
{
    pthread_t t[8];
    char buf[8];
    struct timespec now;
    for (int i = 0; i < 8; i++)
        if (pthread_create(&t[i], NULL, add, (void *)(intptr_t)(i + 1)) != 0) return 1;
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
    if (atomic_load(&sum) != 36) return 2;
    char *p = malloc(64 << 20);
    if (p == NULL) return 3;
    memset(p, 1, 64 << 20);
    free(p);
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 4;
    if (pread(other_fd, buf, sizeof buf, 0) != sizeof buf) return 5;
    if (write(pipe_of[1], "x", 1) != 1) return 6;
    usleep(1000);
    return 0;
}

static void allowed(void **state)
{
    (void)state;
    const struct confine c = walls();
    char byte = 0;
    assert_int_equal(behind(&c, work), 0);
    assert_int_equal(read(pipe_of[0], &byte, 1), 1);
    assert_int_equal(byte, 'x');
}

static int take_memory(void)
{
    for (int i = 0; i < 64; i++)
        if (mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
            return errno == ENOMEM ? i : 100;
    return 101;
}

static void memory(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip();                               /* its shadow does not fit any limit */
#endif
    struct confine c = walls();
    c.memory_bytes = 64 << 20;
    const int how = behind(&c, take_memory);
    assert_true(WIFEXITED(how));
    assert_in_range(WEXITSTATUS(how), 8, 16);     /* of 16 pieces, less what the heap took */
}

static int spin(void)
{
    volatile uint64_t i = 0;
    while (i < UINT64_MAX) i++;
    return 0;
}

static void processor_time(void **state)
{
    (void)state;
    struct confine c = walls();
    c.cpu_s = 1;
    const int how = behind(&c, spin);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGXCPU);
}

static int write_result(void)
{
    static char page[4096];
    char byte;
    if (read(pipe_of[0], &byte, 1) != 1) return 1;        /* the parent's word */
    for (int i = 0; i < 16; i++)
        if (pwrite(file_fd, page, sizeof page, (off_t)i * 4096) != sizeof page) return 2;
    return 0;
}

/* As the parent of extract.h does: the file may become as large as it says, and no larger. */
static int write_up_to(rlim_t bytes)
{
    const struct confine c = walls();
    struct rlimit r;
    int how;
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        struct err e;
        _exit(confine_enter(&c, &e) == OK ? write_result() : 200);
    }
    for (int i = 0; i < 500; i++, usleep(2000))           /* until it is behind the walls */
        if (prlimit(pid, RLIMIT_FSIZE, NULL, &r) == 0 && r.rlim_cur == 0) break;
    assert_int_equal(r.rlim_cur, 0);
    r.rlim_cur = bytes;
    if (bytes > 0) assert_int_equal(prlimit(pid, RLIMIT_FSIZE, &r, NULL), 0);
    assert_int_equal(write(pipe_of[1], "g", 1), 1);
    assert_int_equal(waitpid(pid, &how, 0), pid);
    return how;
}

static void output(void **state)
{
    (void)state;
    assert_int_equal(write_up_to(65536), 0);
    int how = write_up_to(32768);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGXFSZ);
    how = write_up_to(0);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGXFSZ);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused), cmocka_unit_test(allowed), cmocka_unit_test(memory),
        cmocka_unit_test(processor_time), cmocka_unit_test(output),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
