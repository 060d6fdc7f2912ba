/* A fault point for tests: SIGKILL before or after the n-th change that one process makes to its machine.
 *
 * Loaded by LD_PRELOAD. A page shared with the test (file $DEEDS) names the process and how many changes it may still
 * make; only that process counts. Changes are what outlives a process: mounts, names in directories, what is synced to
 * disk, and the programs that it runs: "before" is then when the program has begun, which goes on, "after" when it ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

struct control {
    volatile int pid;   /* whose changes count; 0: nobody's */
    volatile int left;  /* changes that are still allowed; below 0: any number */
    volatile int after; /* the change that kills is made first */
    volatile int done;  /* changes counted since the test wrote this page */
};

static struct control *control;

static void map_control(void)
{
    const char *path = getenv("DEEDS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    control = page == MAP_FAILED ? 0 : page;
}

static int last(int pid)
{
    if (!control || control->pid != pid)
        return 0;
    __sync_fetch_and_add(&control->done, 1);
    if (control->left < 0 || __sync_fetch_and_sub(&control->left, 1) != 0)
        return 0;
    if (!control->after)
        kill(pid, SIGKILL);
    return 1;
}

static int fatal_program;

__attribute__((constructor)) static void begun(void)
{
    map_control();
    fatal_program = last(getppid());
}

__attribute__((destructor)) static void ended(void)
{
    if (fatal_program && control->after)
        kill(control->pid, SIGKILL);
}

#define DEED(name, parameters, arguments)                                   \
    int name parameters                                                     \
    {                                                                       \
        int (*real) parameters = (int (*) parameters)dlsym(RTLD_NEXT, #name); \
        int fatal = last(getpid());                                                 \
        int result = real arguments;                                        \
        if (fatal)                                                          \
            kill(getpid(), SIGKILL);                                        \
        return result;                                                      \
    }

DEED(mount, (const char *s, const char *t, const char *f, unsigned long o, const void *d), (s, t, f, o, d))
DEED(umount2, (const char *t, int o), (t, o))
DEED(rename, (const char *a, const char *b), (a, b))
DEED(unlink, (const char *a), (a))
DEED(rmdir, (const char *a), (a))
DEED(mkdir, (const char *a, mode_t m), (a, m))
DEED(fsync, (int d), (d))
