/* Stores a descriptor with s6-fdholderd and takes it back, as often as each line of its input says. */
#include <s6/fdholder.h>
#include <skalibs/tai.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    s6_fdholder_t holder = S6_FDHOLDER_ZERO;
    tain deadline = TAIN_INFINITE, limit = TAIN_INFINITE;
    char line[64];
    tain_now_set_stopwatch_g();
    if (!s6_fdholder_start_g(&holder, argv[argc - 1], &deadline)) {
        perror("s6_fdholder_start");
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        for (long left = atol(line); left; left--) {
            if (!s6_fdholder_store_g(&holder, 0, "entry", &limit, &deadline)) {
                perror("s6_fdholder_store");
                return 1;
            }
            int got = s6_fdholder_retrieve_delete_g(&holder, "entry", &deadline);
            if (got < 0) {
                perror("s6_fdholder_retrieve");
                return 1;
            }
            close(got);
        }
        puts("done");
        fflush(stdout);
    }
    return 0;
}
