/* One guest, many kinds of memory behind its slots: it adds 1 to the byte at 0x8000 and halts, again and again. */
#include "vm.h"

static const unsigned char code[] = { 0xfe, 0x06, 0x00, 0x80, 0xf4, 0xeb, 0xf9 }; /* inc byte [8000]; hlt; jmp */
static unsigned char in_bss[0x3000] __attribute__((aligned(4096)));
static int vm, fails;
static struct vcpu vcpu;

static int step(void)
{
    if (ioctl(vcpu.fd, KVM_RUN, 0)) return -errno;
    return vcpu.run->exit_reason;
}

/* The guest's byte lies 0x1000 into `memory`, whose pages stand at 0x7000. */
static void check(const char *name, unsigned char *memory, unsigned char before)
{
    must(region(vm, 1, 0x7000, 0x2000, memory), name);
    int first = step(), second = step();
    unsigned char got = memory[0x1000];
    printf("%s: exits %d %d, byte %d\n", name, first, second, got);
    fails += got != (unsigned char)(before + 2) || first != KVM_EXIT_HLT;
    must(region(vm, 1, 0x7000, 0, memory), "delete");
}

int main(void)
{
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *text = anonymous(0x2000, MAP_PRIVATE);
    memcpy(text + 0x1000, code, sizeof code);
    must(region(vm, 0, 0, 0x2000, text), "text");
    vcpu = vcpu_at(kvm, vm, 0, 0x1000);

    unsigned char *area = anonymous(0x2000, MAP_PRIVATE);
    area[0x1000] = 5;
    check("private anonymous", area, 5);

    in_bss[0x1000] = 7;
    check(".bss", in_bss, 7);

    unsigned char *heap = malloc(0x4000), *page = (unsigned char *)(((unsigned long)heap + 4095) & -4096ul);
    memset(heap, 9, 0x4000);
    check("small malloc", page, 9);
    free(heap);
    unsigned char *large = malloc(1 << 20);
    page = (unsigned char *)(((unsigned long)large + 4095) & -4096ul);
    page[0x1000] = 11;
    check("large malloc", page, 11);

    int memfd = must(memfd_create("ram", 0), "memfd_create");
    must(ftruncate(memfd, 0x10000), "ftruncate");
    unsigned char *shared = mmap(0, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0x3000);
    shared[0x1000] = 13;
    check("shared memfd at an offset", shared, 13);
    unsigned char byte;
    must(pread(memfd, &byte, 1, 0x4000), "pread");
    printf("the file holds %d\n", byte);

    unsigned char *both = anonymous(0x2000, MAP_SHARED);
    both[0x1000] = 17;
    check("shared anonymous", both, 17);

    char name[] = "/tmp/kickstand-exec-XXXXXX";
    int file = must(mkstemp(name), "mkstemp");
    unlink(name);
    unsigned char content[0x3000];
    memset(content, 19, sizeof content);
    must(write(file, content, sizeof content), "write");
    unsigned char *of_file = mmap(0, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0x1000);
    check("private file, never touched", of_file, 19);
    must(pread(file, &byte, 1, 0x2000), "pread");
    printf("the file still holds %d\n", byte);

    unsigned char *sparse = anonymous(1ul << 30, MAP_PRIVATE);
    sparse[(1ul << 30) - 0x1000] = 23;
    must(region(vm, 2, 1ul << 30, 1ul << 30, sparse), "1 GiB");
    check("the end of a sparse GiB", sparse + (1ul << 30) - 0x2000, 23);
    must(region(vm, 2, 1ul << 30, 0, sparse), "delete");

    /* The program maps something else under a live slot. */
    must(region(vm, 1, 0x7000, 0x2000, area), "again");
    area[0x1000] = 30;
    step();
    if (mmap(area, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) return 1;
    area[0x1000] = 40;
    step();
    printf("mapped anew: %d\n", area[0x1000]);
    fails += area[0x1000] != 41;
    if (mmap(area, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd, 0x3000) == MAP_FAILED) return 1;
    area[0x1000] = 50;
    step();
    printf("mapped to the file: %d %d\n", area[0x1000], shared[0x1000]);
    fails += area[0x1000] != 51;
    munmap(area, 0x2000);
    if (mmap(area, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) return 1;
    area[0x1000] = 60;
    printf("mapped again: exit %d", step());
    printf(", byte %d\n", area[0x1000]);
    fails += area[0x1000] != 61;
    madvise(area, 0x2000, MADV_DONTNEED);
    int after = area[0x1000];
    step();
    printf("discarded: %d, then %d\n", after, area[0x1000]);
    fails += area[0x1000] != 1;
    printf("%s\n", fails ? "FAILED" : "ok");
    return fails;
}
