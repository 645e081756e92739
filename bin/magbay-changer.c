/* magbay-changer, the quick half of the Changer Command.
 *
 * A storage daemon waits for every call, and Python takes longer to start than an answer takes. So the changer publishes
 * its answers (RUN_DIR/changer.txt; appliance/changer/plain.py describes it), and this program gives them while
 * everything that they rest on is unchanged. In any doubt, for every error message and for all other commands it hands
 * over to magbay-changer-full, beside it, which computes afresh and can stand in for it altogether.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MOST_DIGITS 9
#define MOST_CONFIG 65536
#define MOST_DRIVES 100

/* The published text, mapped: its fields, and its three long texts (list, shelf, paths). */
static struct {
    char *drive_dir;
    long drives, listed, folders, slots;
    const char *text[3];
    size_t length[3];
} view;
static char **words; /* as they came, for the other half */

/* The other half gets the words as they came. Locks and files of this one are closed by the exec. */
static _Noreturn void full(void)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - sizeof "magbay-changer-full");
    if (length > 0) {
        path[length] = 0;
        strcpy(strrchr(path, '/') + 1, "magbay-changer-full");
        words[0] = path;
        execv(path, words);
        fprintf(stderr, "magbay-changer: cannot run %s: %s\n", path, strerror(errno));
    }
    exit(1);
}

static char *joined(const char *folder, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        full();
    return path;
}

/* The number that *word* is, digits only. */
static long number(const char *word)
{
    size_t length = strspn(word, "0123456789");
    if (!length || length > MOST_DIGITS || word[length])
        full();
    return strtol(word, NULL, 10);
}

static void say_and_exit(const char *text, size_t length)
{
    if (write(1, text, length) == (ssize_t)length)
        exit(0);
    fprintf(stderr, "magbay-changer: answer: %s\n", strerror(errno));
    exit(1);
}

/* -u and -g as old configurations have them, when they change nothing. Gives the first word behind them. */
static char **options(char **word)
{
    for (; *word && (!strcmp(*word, "-u") || !strcmp(*word, "-g")); word += 2) {
        const char *name = word[1];
        if (!geteuid() || !name || !*name || *name == '-' || isdigit((unsigned char)*name))
            full();
        if (word[0][1] == 'u') {
            struct passwd *account = getpwnam(name);
            if (!account || account->pw_uid != geteuid())
                full();
        } else {
            struct group *group = getgrnam(name);
            if (!group || (group->gr_gid != getegid() && !group_member(group->gr_gid)))
                full();
        }
    }
    return word;
}

/* The value behind *key* at the beginning of a line of *text*, without quotes and comment; NULL when there is none.
 * *loose*: as vchanger writes it, in any case, with blanks or underscores, then an equals sign. */
static char *setting(char *text, const char *key, int loose)
{
    for (char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        char *at = line;
        const char *left = key;
        for (at += loose ? strspn(at, " \t") : 0; *at && *left; at++) {
            if ((loose ? tolower((unsigned char)*at) : *at) == *left)
                left++;
            else if (!loose || (*at != ' ' && *at != '_'))
                break;
        }
        at += loose ? strspn(at, " \t") : 0;
        if (*left || (loose && *at++ != '='))
            continue;
        at += strspn(at, " \t");
        size_t length = strcspn(at, "\r\n");
        char quote = *at == '"' || *at == '\'' ? *at : 0;
        char *end = memmem(at, length, " #", 2);
        if (end)
            length = (size_t)(end - at);
        while (length && strchr(" \t", at[length - 1]))
            length--;
        if (quote && (length < 2 || at[length - 1] != quote))
            full();
        return quote ? strndup(at + 1, length - 2) : strndup(at, length);
    }
    return NULL;
}

/* Where the configuration most likely puts run_dir. A wrong guess finds nothing that fits. */
static char *run_directory(const char *config, const char *here)
{
    static char text[MOST_CONFIG];
    int file = open(config, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (length < 0 || memchr(text, 0, (size_t)length))
        full();
    close(file);
    char *value = setting(text, "run_dir:", 0);
    char *base = strndup(config, (size_t)(strrchr(config, '/') - config));
    if (!value) {
        base = strdup(here);
        value = setting(text, "workdir", 1);
        if (!value)
            value = setting(text, "statedir", 1);
    }
    if (!value)
        value = strdup("/run/magbay");
    return *value == '/' ? value : joined(base, value);
}

/* Whether the line STAMP TAB PATH of the head still holds. */
static int holds(char *line)
{
    char now[200], *path = strchr(line, '\t');
    struct statx found;
    if (!path)
        return 0;
    *path++ = 0;
    if (statx(AT_FDCWD, path, AT_NO_AUTOMOUNT, STATX_BASIC_STATS, &found))
        /* A daemon's user may not look into the state directory; the agent that may has published this. */
        return errno == EACCES || (!strcmp(line, "-") && (errno == ENOENT || errno == ENOTDIR));
    snprintf(now, sizeof now, "%llu %llu %lld %u %lld %u %u %u", (unsigned long long)found.stx_ino,
             (unsigned long long)found.stx_size, (long long)found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec,
             (long long)found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec, found.stx_dev_major, found.stx_dev_minor);
    return !strcmp(now, line);
}

/* Read the published text of *config* and prove that it holds. */
static void read_view(const char *config, const char *run_dir)
{
    struct stat size;
    int file = open(joined(run_dir, "changer.txt"), O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &size) || size.st_size < 4)
        full();
    /* Private, because the head is cut into lines; the file itself is replaced, never written. */
    char *text = mmap(NULL, (size_t)size.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    char *end = text == MAP_FAILED ? NULL : memmem(text, (size_t)size.st_size, "\n\n", 2);
    if (!end)
        full();
    end[1] = 0;
    char *lines, *field = strtok_r(text, "\n", &lines), *fields[10];
    for (int at = 0; at < 10; at++)
        if (!(fields[at] = strsep(&field, "\t")))
            full();
    if (field || strcmp(fields[0], "magbay-changer 3") || strcmp(fields[1], config))
        full();
    view.drive_dir = fields[2];
    view.drives = number(fields[3]), view.listed = number(fields[4]);
    view.folders = number(fields[5]), view.slots = number(fields[6]);
    const char *at = end + 2;
    for (int which = 0; which < 3; at += view.length[which++]) {
        view.text[which] = at;
        view.length[which] = (size_t)number(fields[7 + which]);
        if (view.length[which] > (size_t)(text + size.st_size - at))
            full();
    }
    if (!lines || !*lines)
        full();
    for (char *line; (line = strsep(&lines, "\n"));)
        if (*line && !holds(line))
            full();
}

/* The link of *drive*, in whichever form it has; what it points at into *target* (empty: nothing). */
static char *link_of(long drive, char *target)
{
    const char *forms[] = {"%s/%ld", "%s/%ld/drive%ld"};
    for (int form = 0; form < 2; form++) {
        char *link;
        if (asprintf(&link, forms[form], view.drive_dir, drive, drive) < 0)
            full();
        ssize_t length = readlink(link, target, PATH_MAX - 1);
        if (length >= 0) {
            target[length] = 0;
            return link;
        }
        if (errno != ENOENT && errno != ENOTDIR && errno != EINVAL)
            full();
        free(link);
    }
    *target = 0;
    return NULL;
}

/* The line `PATH SLOT NAME` with *needle* (which has its tabs and line ends), from its beginning. */
static const char *line_with(const char *needle)
{
    const char *found = memmem(view.text[2], view.length[2], needle, strlen(needle));
    if (found && *found == '\n')
        return found + 1;
    return found ? (const char *)memrchr(view.text[2], '\n', (size_t)(found - view.text[2])) + 1 : NULL;
}

/* The slot of the volume with this path, 0 for none. */
static long slot_of(const char *path)
{
    char needle[PATH_MAX + 2];
    snprintf(needle, sizeof needle, "\n%s\t", path);
    const char *line = *path ? line_with(needle) : NULL;
    return line ? strtol(line + strlen(path) + 1, NULL, 10) : 0;
}

/* The next drive in the directory that is not opened by number, -1 behind the last. */
static long next_drive(DIR *directory)
{
    for (struct dirent *entry; (entry = readdir(directory));) {
        const char *name = entry->d_name;
        size_t length = strspn(name, "0123456789");
        if (length && length <= MOST_DIGITS && !name[length] && (*name != '0' || length == 1) &&
            strtol(name, NULL, 10) < view.drives)
            return strtol(name, NULL, 10);
    }
    return -1;
}

static void load(long slot, long drive, const char *device)
{
    char needle[32], target[PATH_MAX], *place, *fresh, *inside;
    snprintf(needle, sizeof needle, "\t%ld\t", slot);
    const char *line = line_with(needle);
    if (!line || asprintf(&inside, "/drive%ld", drive) < 0)
        full();
    char *path = strndup(line, (size_t)(strchr(line, '\t') - line));
    if (asprintf(&place, "%s/%ld", view.drive_dir, drive) < 0)
        full();
    size_t tail = strlen(inside);
    int folder = (strlen(device) >= tail && !strcmp(device + strlen(device) - tail, inside)) ||
                 (view.folders && strcmp(device, place));
    char *home = folder ? place : view.drive_dir;
    if (folder)
        place = joined(place, inside + 1);
    DIR *directory = opendir(view.drive_dir);
    if (!directory)
        full();
    for (long other; (other = next_drive(directory)) >= 0;) {
        char *link = link_of(other, target);
        if (link && (strcmp(target, path) ? other == drive && slot_of(target) : strcmp(link, place)))
            full();
    }
    struct stat found;
    char byte;
    if (lstat(path, &found) || !S_ISREG(found.st_mode))
        full();
    int volume = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (volume < 0 || read(volume, &byte, 1) < 0)
        full();
    ssize_t length = readlink(place, target, sizeof target - 1);
    if (length >= 0 && (size_t)length == strlen(path) && !memcmp(target, path, (size_t)length))
        exit(0);
    if (length < 0 && errno != ENOENT)
        full();
    if (folder && (lstat(home, &found) || !S_ISDIR(found.st_mode)))
        full();
    if (asprintf(&fresh, "%s/.%ld.%d", home, drive, (int)getpid()) < 0)
        full();
    unlink(fresh);
    if (symlink(path, fresh) || rename(fresh, place))
        full();
    exit(0);
}

static void unload(long drive)
{
    char target[PATH_MAX], *link = link_of(drive, target);
    if (!link || !unlink(link))
        exit(0);
    full();
}

static void loaded(long drive)
{
    char target[PATH_MAX], answer[32];
    link_of(drive, target);
    say_and_exit(answer, (size_t)snprintf(answer, sizeof answer, "%ld\n", slot_of(target)));
}

static void listall(void)
{
    static struct { long slot; const char *name; int length; } held[MOST_DRIVES];
    char target[PATH_MAX], needle[PATH_MAX + 2], *text = NULL;
    size_t size;
    long last = view.listed;
    DIR *directory = opendir(view.drive_dir);
    FILE *answer = open_memstream(&text, &size);
    if (!directory || !answer || view.drives > MOST_DRIVES || view.listed > MOST_DRIVES)
        full();
    /* Looking at each of 99 drives would take longer. */
    for (long drive; (drive = next_drive(directory)) >= 0;) {
        link_of(drive, target);
        snprintf(needle, sizeof needle, "\n%s\t", target);
        const char *line = *target ? line_with(needle) : NULL;
        if (!line)
            continue;
        char *name;
        held[drive].slot = strtol(line + strlen(target) + 1, &name, 10);
        held[drive].name = name + 1;
        held[drive].length = (int)((const char *)memchr(name, '\n', 200) - name - 1);
        last = drive >= last ? drive + 1 : last;
    }
    for (long drive = 0; drive < last; drive++)
        if (held[drive].slot)
            fprintf(answer, "D:%ld:F:%ld:%.*s\n", drive, held[drive].slot, held[drive].length, held[drive].name);
        else
            fprintf(answer, "D:%ld:E\n", drive);
    const char *line = view.text[1], *end = line + view.length[1];
    for (const char *next; line < end; line = next) {
        long slot = strtol(line + 2, NULL, 10), drive = 0;
        next = (const char *)memchr(line, '\n', (size_t)(end - line)) + 1;
        while (drive < last && held[drive].slot != slot)
            drive++;
        if (drive < last)
            fprintf(answer, "S:%ld:E\n", slot);
        else
            fwrite(line, 1, (size_t)(next - line), answer);
    }
    if (fclose(answer))
        full();
    say_and_exit(text, size);
}

static void slots(void)
{
    char answer[32];
    say_and_exit(answer, (size_t)snprintf(answer, sizeof answer, "%ld\n", view.slots));
}

int main(int argc, char **argv)
{
    static char here[PATH_MAX];
    words = argv;
    char **word = options(argv + 1);
    long count = argc - (word - argv);
    for (long at = 0; at < count; at++)
        if (*word[at] == '-')
            full();
    if (count < 2)
        full();
    char *config = word[0], *command = word[1];
    int moves = !strcasecmp(command, "load") || !strcasecmp(command, "unload"), asks = !strcasecmp(command, "loaded");
    if (!moves && !asks && strcasecmp(command, "list") && strcasecmp(command, "listall") &&
        strcasecmp(command, "slots"))
        full();
    if ((moves || asks) && count < 5)
        full();
    long slot = moves || asks ? number(word[2]) : 0, drive = moves || asks ? number(word[4]) : 0;
    ssize_t length = readlink("/proc/self/cwd", here, sizeof here - 1);
    if (length < 0)
        full();
    if (*config != '/')
        config = joined(here, config);
    char *run_dir = run_directory(config, here);
    int lock = moves ? open(joined(run_dir, "changer.lock"), O_RDWR | O_CLOEXEC) : 0;
    if (lock < 0 || (moves && flock(lock, LOCK_EX)))
        full();
    read_view(config, run_dir);
    if ((moves || asks) && drive >= view.drives)
        full();
    if (asks)
        loaded(drive);
    if (!strcasecmp(command, "list"))
        say_and_exit(view.text[0], view.length[0]);
    if (!strcasecmp(command, "listall"))
        listall();
    if (!strcasecmp(command, "slots"))
        slots();
    if (!strcasecmp(command, "load"))
        load(slot, drive, word[3]);
    unload(drive);
}
