"""The userspace ABI: requests, names and numbers as the kernel has them."""

import errno

import pytest

from kickstand.core import uapi
from kickstand.core.uapi import CAPABILITIES, IOCTLS, Cap, Direction, ExitReason, Fd, MemFlag

REQUESTS = {
    Fd.SYSTEM: {
        "GET_API_VERSION": 0xAE00,
        "CREATE_VM": 0xAE01,
        "CHECK_EXTENSION": 0xAE03,
        "GET_VCPU_MMAP_SIZE": 0xAE04,
        "GET_MSR_INDEX_LIST": 0xC004AE02,
        "GET_SUPPORTED_CPUID": 0xC008AE05,
        "GET_EMULATED_CPUID": 0xC008AE09,
        "GET_MSR_FEATURE_INDEX_LIST": 0xC004AE0A,
        "X86_GET_MCE_CAP_SUPPORTED": 0x8008AE9D,
        "GET_MSRS": 0xC008AE88,
    },
    Fd.VM: {
        "CHECK_EXTENSION": 0xAE03,
        "CREATE_VCPU": 0xAE41,
        "GET_DIRTY_LOG": 0x4010AE42,
        "SET_NR_MMU_PAGES": 0xAE44,
        "GET_NR_MMU_PAGES": 0xAE45,
        "SET_USER_MEMORY_REGION": 0x4020AE46,
        "SET_USER_MEMORY_REGION2": 0x40A0AE49,
        "SET_TSS_ADDR": 0xAE47,
        "SET_IDENTITY_MAP_ADDR": 0x4008AE48,
        "CREATE_IRQCHIP": 0xAE60,
        "IRQ_LINE": 0x4008AE61,
        "GET_IRQCHIP": 0xC208AE62,
        "SET_IRQCHIP": 0x8208AE63,
        "IRQ_LINE_STATUS": 0xC008AE67,
        "SET_GSI_ROUTING": 0x4008AE6A,
        "IRQFD": 0x4020AE76,
        "CREATE_PIT2": 0x4040AE77,
        "IOEVENTFD": 0x4040AE79,
        "GET_PIT2": 0x8070AE9F,
        "SET_PIT2": 0x4070AEA0,
        "ENABLE_CAP": 0x4068AEA3,
        "GET_TSC_KHZ": 0xAEA3,
        "SET_TSC_KHZ": 0xAEA2,
        "SET_BOOT_CPU_ID": 0xAE78,
        "SET_CLOCK": 0x4030AE7B,
        "GET_CLOCK": 0x8030AE7C,
        "REGISTER_COALESCED_MMIO": 0x4010AE67,
        "UNREGISTER_COALESCED_MMIO": 0x4010AE68,
        "X86_SET_MSR_FILTER": 0x4188AEC6,
        "SIGNAL_MSI": 0x4020AEA5,
        "CLEAR_DIRTY_LOG": 0xC018AEC0,
        "RESET_DIRTY_RINGS": 0xAEC7,
        "GET_STATS_FD": 0xAECE,
        "KICK_ALL_RUNNING_VCPUS": 0xAED2,
        "RESUME_ALL_KICKED_VCPUS": 0xAED3,
    },
    Fd.VCPU: {
        "RUN": 0xAE80,
        "GET_REGS": 0x8090AE81,
        "SET_REGS": 0x4090AE82,
        "GET_SREGS": 0x8138AE83,
        "SET_SREGS": 0x4138AE84,
        "GET_SREGS2": 0x8140AECC,
        "SET_SREGS2": 0x4140AECD,
        "TRANSLATE": 0xC018AE85,
        "INTERRUPT": 0x4004AE86,
        "GET_MSRS": 0xC008AE88,
        "SET_MSRS": 0x4008AE89,
        "SET_SIGNAL_MASK": 0x4004AE8B,
        "GET_FPU": 0x81A0AE8C,
        "SET_FPU": 0x41A0AE8D,
        "GET_LAPIC": 0x8400AE8E,
        "SET_LAPIC": 0x4400AE8F,
        "SET_CPUID2": 0x4008AE90,
        "TPR_ACCESS_REPORTING": 0xC028AE92,
        "SET_VAPIC_ADDR": 0x4008AE93,
        "GET_CPUID2": 0xC008AE91,
        "GET_MP_STATE": 0x8004AE98,
        "SET_MP_STATE": 0x4004AE99,
        "NMI": 0xAE9A,
        "GET_DEBUGREGS": 0x8080AEA1,
        "SET_DEBUGREGS": 0x4080AEA2,
        "GET_TSC_KHZ": 0xAEA3,
        "SET_TSC_KHZ": 0xAEA2,
        "ENABLE_CAP": 0x4068AEA3,
        "X86_SETUP_MCE": 0x4008AE9C,
        "X86_SET_MCE": 0x4040AE9E,
        "KVMCLOCK_CTRL": 0xAEAD,
        "SET_DEVICE_ATTR": 0x4018AEE1,
        "GET_DEVICE_ATTR": 0x4018AEE2,
        "HAS_DEVICE_ATTR": 0x4018AEE3,
        "GET_XSAVE": 0x9000AEA4,
        "SET_XSAVE": 0x5000AEA5,
        "GET_XCRS": 0x8188AEA6,
        "SET_XCRS": 0x4188AEA7,
        "GET_XSAVE2": 0x9000AECF,
        "SMI": 0xAEB7,
        "SET_GUEST_DEBUG": 0x4048AE9B,
        "GET_VCPU_EVENTS": 0x8040AE9F,
        "SET_VCPU_EVENTS": 0x4040AEA0,
        "GET_STATS_FD": 0xAECE,
    },
}


def test_every_request_code_is_the_kernels():
    ours = {fd: {i.name.removeprefix("KVM_"): i.request for i in IOCTLS if i.fd is fd} for fd in Fd}
    assert ours == REQUESTS


def test_no_descriptor_knows_one_request_twice():
    assert len({(ioctl.fd, ioctl.request) for ioctl in IOCTLS}) == len(IOCTLS)


@pytest.mark.parametrize("ioctl", IOCTLS, ids=lambda ioctl: f"{ioctl.fd.value}-{ioctl.name}")
def test_a_request_is_found_on_its_own_descriptor_and_carries_its_payload(ioctl):
    assert uapi.ioctl_by_request(ioctl.fd, ioctl.request) is ioctl
    assert (ioctl.size == 0) == (ioctl.direction is Direction.NONE)
    assert ioctl.payload is None or ioctl.payload.size == ioctl.size


def test_dispatch_takes_the_whole_request_code_not_the_number_alone():
    set_memory_attributes = 0x4020AED2  # shares its number with the kick
    assert uapi.ioctl_by_request(Fd.VM, set_memory_attributes) is None
    assert uapi.ioctl_by_request(Fd.VM, 0xAED2).name == "KVM_KICK_ALL_RUNNING_VCPUS"
    assert uapi.ioctl_by_request(Fd.VCPU, 0xAED2) is None


def test_an_unknown_request_is_enotty_on_a_vm_and_einval_elsewhere():
    assert {fd: uapi.unknown_errno(fd) for fd in Fd} == {
        Fd.SYSTEM: errno.EINVAL,
        Fd.VM: errno.ENOTTY,
        Fd.VCPU: errno.EINVAL,
    }


@pytest.mark.parametrize("name", ["RUN", "KVM_RUN"])
def test_an_ioctl_is_found_by_name_with_and_without_prefix(name):
    assert uapi.ioctl_by_name(name).request == 0xAE80


def test_an_unknown_ioctl_name_is_a_key_error():
    with pytest.raises(KeyError, match="KVM_DANCE"):
        uapi.ioctl_by_name("DANCE")


def test_exit_reasons_are_numbered_without_a_gap_and_named_as_in_the_kernel():
    assert [int(reason) for reason in ExitReason] == list(range(41))
    assert (ExitReason(2).kernel_name, ExitReason(40).kernel_name) == ("KVM_EXIT_IO", "KVM_EXIT_TDX")


@pytest.mark.parametrize("value", range(4))
def test_memory_flags_survive_the_way_through_names(value):
    assert MemFlag.from_names(MemFlag(value).names) == value


def test_memory_flags_keep_and_show_bits_without_a_name():
    assert MemFlag(0x80000003).names == ["LOG_DIRTY_PAGES", "READONLY", "0x80000000"]


def test_memory_flags_take_the_kernels_full_names():
    assert MemFlag.from_names(["KVM_MEM_READONLY"]) is MemFlag.READONLY


def test_an_unknown_memory_flag_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'SHINY' is not one of LOG_DIRTY_PAGES, READONLY"):
        MemFlag.from_names(["SHINY"])


def test_every_capability_has_an_answer():
    assert set(CAPABILITIES) == set(Cap)
    assert CAPABILITIES[Cap.NR_MEMSLOTS] == 32764
    assert CAPABILITIES[Cap.MULTI_ADDRESS_SPACE] == CAPABILITIES[Cap.X86_SMM] == 0
