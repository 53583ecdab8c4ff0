"""A VMM for a guest of many CPUs: IMAGE CPUS ROUNDS HOW TIMES. Each vCPU is a thread that loops KVM_RUN.

HOW they are disturbed meanwhile: "none", by "signal", or by "kick" (the proposed ioctls), so many TIMES, at random
moments. At the end it prints how many IPIs each CPU has received, and how many rounds were made.
"""

import fcntl
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
from pathlib import Path

from kvm import HLT, IO, KICK, RESUME, Vcpu, Vm, address_of, kvm

CREATE_IRQCHIP, GET_SUPPORTED_CPUID, SET_CPUID2 = 0xAE60, 0xC008AE05, 0x4008AE90
DONE_PORT, CODE = 0x3F0, 0x8000
ROUNDS_AT, RECEIVED_AT = 0x7004, 0x7100
LONGEST_S = 100

image, cpus, rounds, how, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
vm = Vm()
fcntl.ioctl(vm.fd, CREATE_IRQCHIP, 0)
data = Path(image).read_bytes()
ram = mmap.mmap(-1, len(data))
ram[:] = data
vm.region(0, 0, len(data), address_of(ram))
vcpus = [Vcpu(vm, number) for number in range(cpus)]
cpuid = bytearray(struct.pack("=II", 200, 0) + bytes(200 * 40))
fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, cpuid)  # without it there is no long mode
for vcpu in vcpus:
    fcntl.ioctl(vcpu.fd, SET_CPUID2, cpuid)
sregs = bytearray(312)
fcntl.ioctl(vcpus[0].fd, 0x8138AE83, sregs)
struct.pack_into("=QIH", sregs, 0, CODE, 0xFFFF, CODE >> 4)
fcntl.ioctl(vcpus[0].fd, 0x4138AE84, bytes(sregs))
fcntl.ioctl(vcpus[0].fd, 0x4090AE82, struct.pack("=18Q", *[0] * 16, 0, 2))
done, trouble = threading.Event(), []
left = [0] * cpus  # KVM_RUNs that a signal or a kick ended


def run(number):
    vcpu = vcpus[number]
    while not done.is_set():
        try:
            reason = vcpu.run()
        except InterruptedError:
            left[number] += 1
            continue
        except BlockingIOError:  # an AP that has just been started, or not yet
            continue
        if reason == IO and vcpu.io()[2] == DONE_PORT:
            done.set()
        elif reason != HLT:
            trouble.append((number, reason))
            done.set()


signal.signal(signal.SIGUSR1, lambda *_: None)
threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(cpus)]
for thread in threads:
    thread.start()
draw = random.Random(1)
disturbed = 0
deadline = time.monotonic() + LONGEST_S
while disturbed < times and not done.is_set() and time.monotonic() < deadline:
    time.sleep(draw.random() / 1000)
    if how == "kick":
        fcntl.ioctl(vm.fd, KICK, 0)
        time.sleep(draw.random() / 1000)
        fcntl.ioctl(vm.fd, RESUME, 0)
    else:
        signal.pthread_kill(draw.choice(threads).ident, signal.SIGUSR1)
    disturbed += 1
done.wait(max(0, deadline - time.monotonic()))
received = struct.unpack_from(f"<{cpus}I", ram, RECEIVED_AT)
print("received", *received, "rounds", struct.unpack_from("<I", ram, ROUNDS_AT)[0], "trouble", *trouble)
print("disturbed", disturbed, "left", sum(left), file=sys.stderr)
sys.stdout.flush()
os._exit(0 if done.is_set() and not trouble else 1)
