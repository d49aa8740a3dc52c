/* tests/kernels/test_cuda_simt.c - the simulation that the CUDA kernels are tested in (simt.h) sees what it says it sees: each
 * wrong kernel of simt_bad.cu ends the program or leaves NaN, the right one does neither. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kernels/cuda.h"

status bad_launch(int how, float *out, const float *in, struct err *e);

enum seen { NOTHING, UNWRITTEN, ENDED };

/* What becomes of kernel `how`, in a process of its own. */
static enum seen run(int how)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        float *in = twin_random_floats(2048), *out = twin_floats(64);
        bool poisoned = false;
        if (freopen("/dev/null", "w", stderr) == NULL) _exit(3);
        for (int i = 0; i < 2048; i++) in[i] = twin_round_bf16(in[i]);
        for (int again = 0; again < 16; again++) {                    /* not every order shows what is wrong */
            bad_launch(how, out, in, NULL);
            for (int i = 0; i < 64; i++) poisoned |= isnan(out[i]);
        }
        _exit(poisoned ? 1 : 0);
    }
    int how_ended;
    assert_true(waitpid(child, &how_ended, 0) == child);
    if (WIFSIGNALED(how_ended) && WTERMSIG(how_ended) == SIGABRT) return ENDED;
    assert_true(WIFEXITED(how_ended) && WEXITSTATUS(how_ended) < 2);
    return WEXITSTATUS(how_ended) ? UNWRITTEN : NOTHING;
}

static void check(int first, const enum seen *want, int n)
{
    for (int i = 0; i < n; i++)
        if (run(first + i) != want[i]) fail_msg("kernel %d of simt_bad.cu was not seen for what it is", first + i);
}

static void test_seen(void **state)
{
    (void)state;
    static const enum seen want[] = { NOTHING, UNWRITTEN, UNWRITTEN, ENDED, ENDED, ENDED, ENDED, ENDED, ENDED, UNWRITTEN };
    check(0, want, sizeof want / sizeof want[0]);
}

static void test_seen_hopper(void **state)
{
    (void)state;
    static const enum seen want[] = { NOTHING, ENDED,     ENDED, ENDED, UNWRITTEN, NOTHING, UNWRITTEN, ENDED,
                                      ENDED,   ENDED, UNWRITTEN, ENDED, UNWRITTEN, ENDED,   ENDED,     ENDED };
    check(100, want, sizeof want / sizeof want[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_seen), cmocka_unit_test(test_seen_hopper) };
    return cmocka_run_group_tests_name("cuda simt", tests, NULL, NULL);
}
