/* tests/media/child_hook.h - makes a test program its own media child: include it in the file with main(), and
 * `PROGRAM --media-child` never gets to main(). As cli/main.c does by hand. */
#ifndef TESTS_MEDIA_CHILD_HOOK_H
#define TESTS_MEDIA_CHILD_HOOK_H

#include <stdlib.h>
#include <string.h>

#include "media/extract.h"

__attribute__((constructor)) static void child_hook(int argc, char **argv, char **env)
{
    (void)env;
    if (argc == 2 && strcmp(argv[1], "--media-child") == 0) exit(extract_child_main(argc, argv));
}

#endif
