/* comm/mpi.c - omnidrop-mpi.so: the few calls of MPI that comm/ is made of (struct mpi_lib in inside.h). A shared object
 * of its own, so that the program runs where no MPI is installed, and so that another MPI is one small file to compile.
 * MPI_THREAD_MULTIPLE is asked for; where the library gives less, calls take turns: none of them waits. They do under
 * ThreadSanitizer too, which does not see how the library orders what its threads do. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>

#include "comm/inside.h"

_Static_assert(sizeof(MPI_Request) <= sizeof(struct mpi_req), "a request fits");
_Static_assert(sizeof(MPI_Message) <= sizeof(struct mpi_req), "a message fits");

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static bool in_turn;
static int level = -1;

static void enter(void) { if (in_turn) pthread_mutex_lock(&turn); }
static int leave(int rc)
{
    if (in_turn) pthread_mutex_unlock(&turn);
    return rc;
}

static void put_request(struct mpi_req *out, MPI_Request r) { out->v = 0; memcpy(&out->v, &r, sizeof r); }
static MPI_Request get_request(const struct mpi_req *q)
{
    MPI_Request r;
    memcpy(&r, &q->v, sizeof r);
    return r;
}

static int lib_open(int *rank, int *size, int *tag_max)
{
    int there = 0, found = 0, rc = MPI_Initialized(&there);
    if (rc == 0 && !there) rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &level);
    else if (rc == 0) rc = MPI_Query_thread(&level);
    if (rc != 0) return rc;
#if defined(__SANITIZE_THREAD__)
    in_turn = true;
#else
    in_turn = level < MPI_THREAD_MULTIPLE;
#endif
    /* A peer that died must be an error of one call, not the end of this process. */
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    int *top = NULL;
    rc = MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, (void *)&top, &found);
    *tag_max = rc == 0 && found ? *top : 32767;
    if (rc == 0) rc = MPI_Comm_rank(MPI_COMM_WORLD, rank);
    if (rc == 0) rc = MPI_Comm_size(MPI_COMM_WORLD, size);
    return rc;
}

static int lib_close(void) { return MPI_Finalize(); }

static void lib_version(char *text, size_t cap)
{
    char v[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int n = 0;
    MPI_Get_library_version(v, &n);
    v[strcspn(v, ",\n")] = 0;      /* Open MPI goes on with who built it and when */
    static const char *const names[] = { "single", "funneled", "serialized", "multiple" };
    const char *threads = level == MPI_THREAD_MULTIPLE ? names[3] : level == MPI_THREAD_SERIALIZED ? names[2]
                        : level == MPI_THREAD_FUNNELED ? names[1] : names[0];
    snprintf(text, cap, "%s, threads %s", v, threads);
}

static void lib_text(int rc, char *text, size_t cap)
{
    char t[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    if (MPI_Error_string(rc, t, &n) != 0) snprintf(t, sizeof t, "error %d", rc);
    snprintf(text, cap, "%s", t);
}

static int lib_isend(const void *x, size_t n, int to, int tag, struct mpi_req *out)
{
    MPI_Request r = MPI_REQUEST_NULL;
    enter();
    const int rc = MPI_Isend(x, (int)n, MPI_BYTE, to, tag, MPI_COMM_WORLD, &r);
    put_request(out, r);
    return leave(rc);
}

static int lib_irecv(void *x, size_t n, int from, int tag, struct mpi_req *out)
{
    MPI_Request r = MPI_REQUEST_NULL;
    enter();
    const int rc = MPI_Irecv(x, (int)n, MPI_BYTE, from, tag, MPI_COMM_WORLD, &r);
    put_request(out, r);
    return leave(rc);
}

static int lib_test(struct mpi_req *q, bool *done)
{
    MPI_Request r = get_request(q);
    int flag = 0;
    enter();
    const int rc = MPI_Test(&r, &flag, MPI_STATUS_IGNORE);
    put_request(q, r);
    *done = flag != 0;
    return leave(rc);
}

static int lib_cancel(struct mpi_req *q)
{
    MPI_Request r = get_request(q);
    if (r == MPI_REQUEST_NULL) return 0;
    enter();
    int rc = MPI_Cancel(&r);
    if (rc == 0) rc = MPI_Request_free(&r);
    put_request(q, r);
    return leave(rc);
}

static int lib_probe(int tag, bool *found, int *from, size_t *n, struct mpi_req *message)
{
    MPI_Message m = MPI_MESSAGE_NULL;
    MPI_Status st;
    int flag = 0, count = 0;
    enter();
    /* Twice: Open MPI looks first and makes progress after, so that one call never sees what has just come. */
    int rc = MPI_Improbe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &flag, &m, &st);
    if (rc == 0 && !flag) rc = MPI_Improbe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &flag, &m, &st);
    *found = rc == 0 && flag != 0;
    if (*found) {
        rc = MPI_Get_count(&st, MPI_BYTE, &count);
        *from = st.MPI_SOURCE;
        *n = (size_t)count;
        message->v = 0;
        memcpy(&message->v, &m, sizeof m);
    }
    return leave(rc);
}

static int lib_recv_probed(struct mpi_req *message, void *x, size_t n, struct mpi_req *out)
{
    MPI_Message m;
    MPI_Request r = MPI_REQUEST_NULL;
    memcpy(&m, &message->v, sizeof m);
    enter();
    const int rc = MPI_Imrecv(x, (int)n, MPI_BYTE, &m, &r);
    put_request(out, r);
    return leave(rc);
}

__attribute__((visibility("default"))) extern const struct mpi_lib omnidrop_mpi;
const struct mpi_lib omnidrop_mpi = {
    .abi = MPI_LIB_ABI,
    .open = lib_open,
    .close = lib_close,
    .version = lib_version,
    .text = lib_text,
    .isend = lib_isend,
    .irecv = lib_irecv,
    .test = lib_test,
    .cancel = lib_cancel,
    .probe = lib_probe,
    .recv_probed = lib_recv_probed,
};
