"""The kernel's own KVM selftests under ``kickstand exec``: ``make selftests``.

Not part of the suite: they are built once, from Debian's source package, into a cache folder (``SELFTESTS_DIR`` takes
another, or one that is built already), and take minutes. None of them is ever committed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import under_exec, why_not

PACKAGE = "linux-source-6.12"
PARTS = [
    *("Makefile", "Kbuild", "Kconfig", "scripts", "include", "arch/x86"),
    *(f"tools/{part}" for part in ("include", "arch/x86", "scripts", "build", "lib")),
    *(f"tools/testing/selftests/{part}" for part in ("kvm", "rseq", "lib.mk", "kselftest.h")),
    *("tools/testing/selftests/kselftest_harness.h", "tools/testing/selftests/Makefile"),
]
PASSED, SKIPPED = 0, 4
LIMITS = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()

# Each with its options and how many seconds it may take.
PROGRAMS = {
    "guest_print_test": ((), 60),
    "kvm_create_max_vcpus": ((), 60),
    "set_memory_region_test": ((), 240),
    "memslot_modification_stress_test": ((), 120),
    "kvm_page_table_test": ((), 120),
    "dirty_log_test": (("-M", "dirty-log"), 240),
    "dirty_log_test clear": (("-M", "clear-log"), 240),
    "memslot_perf_test": ((), 400),
    "demand_paging_test": ((), 120),
    "dirty_log_perf_test": ((), 240),
    "hardware_disable_test": ((), 300),
    "x86_64/xapic_ipi_test": ((), 60),
    "x86_64/xapic_state_test": ((), 120),
    "x86_64/recalc_apic_map_test": ((), 120),
    # It measures time: on a busy machine a tenth of a second, as it would take by itself, is too short for 5 %.
    "x86_64/apic_bus_clock_test": (("-d", "500"), 120),
    "x86_64/fix_hypercall_test": ((), 60),
    "dirty_log_test ring": (("-M", "dirty-ring"), 400),
    "coalesced_io_test": ((), 240),
    "kvm_binary_stats_test": ((), 60),
    "max_guest_memory_test": (("-m", "1", "-s", "1"), 240),
    "rseq_test": (("-u",), 400),
    "steal_time": ((), 60),
    "system_counter_offset_test": ((), 60),
    **dict.fromkeys(
        [
            f"x86_64/{name}"
            for name in (
                *(
                    "cpuid_test",
                    "debug_regs",
                    "exit_on_emulation_failure_test",
                    "get_msr_index_features",
                    "hwcr_msr_test",
                ),
                *("kvm_clock_test", "kvm_pv_test", "max_vcpuid_cap_test", "platform_info_test", "set_boot_cpu_id"),
                *("set_sregs_test", "state_test", "sync_regs_test", "tsc_msrs_test", "tsc_scaling_sync"),
                *("ucna_injection_test", "userspace_io_test", "userspace_msr_exit_test"),
            )
        ],
        ((), 120),
    ),
}
# What each of the others misses; docs/limits.md has all of it.
SKIPS = {
    "nested virtualisation": (
        *(f"vmx_{name}" for name in ("apic_access_test", "close_while_nested_test", "dirty_log_test", "msrs_test")),
        *(f"vmx_{name}" for name in ("invalid_nested_guest_state", "nested_tsc_scaling_test", "preemption_timer_test")),
        *("vmx_set_nested_state_test", "vmx_tsc_adjust_test", "vmx_exception_with_invalid_guest_state"),
        *(f"svm_{name}" for name in ("int_ctl_test", "nested_shutdown_test", "nested_soft_inject_test", "vmcall_test")),
        *("nested_exceptions_test", "triple_fault_event_test"),
    ),
    "Hyper-V": tuple(
        f"hyperv_{name}"
        for name in ("clock", "cpuid", "evmcs", "extended_hypercalls", "features", "ipi", "svm_test", "tlb_flush")
    ),
    "XSAVE": ("cr4_cpuid_sync_test", "xcr0_cpuid_test", "xss_msr_test", "amx_test"),
    "PMU": ("pmu_counters_test", "pmu_event_filter_test", "vmx_pmu_caps_test"),
    "SEV": ("sev_init2_tests", "sev_migrate_tests", "sev_smoke_test"),
    "Xen": ("xen_shinfo_test", "xen_vmcall_test"),
    "guest_memfd": ("private_mem_conversions_test", "private_mem_kvm_exits_test", "../guest_memfd_test"),
    "pre-faulting": ("../pre_fault_memory_test",),
    "SMM": ("smm_test",),
    "MWAIT": ("monitor_mwait_test",),
    "smaller": ("smaller_maxphyaddr_emulation_test",),
    "page splitting": ("dirty_log_page_splitting_test",),
}


def cache() -> Path:
    given = os.environ.get("SELFTESTS_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "kickstand" / "selftests"


def build(folder: Path) -> Path:
    """Download and build them, unless that was done before; returns the folder of the programs."""
    tree = folder / PACKAGE
    programs = tree / "tools/testing/selftests/kvm"
    if not programs.is_dir():
        for tool in ("apt-get", "dpkg-deb", "tar", "make", "gcc"):
            if shutil.which(tool) is None:
                pytest.skip(f"building the selftests needs {tool}")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", "-q", PACKAGE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"apt-get cannot get {PACKAGE}: {done.stderr.strip()}")
        (package,) = folder.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, "unpacked"], cwd=folder, check=True)
        archive = f"unpacked/usr/src/{PACKAGE}.tar.xz"
        subprocess.run(["tar", "-xf", archive, *(f"{PACKAGE}/{part}" for part in PARTS)], cwd=folder, check=True)
        shutil.rmtree(folder / "unpacked")
        package.unlink()
    if not (programs / "guest_print_test").exists():
        # Below another make the kernel's own puts its programs where that one says, which says nothing: into /.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        subprocess.run(["make", "-s", "-C", tree, "ARCH=x86", "headers"], check=True, capture_output=True, env=own)
        command = ["make", "-s", "-C", programs, "ARCH=x86", "-k", f"-j{os.cpu_count() or 1}"]
        subprocess.run(command, check=True, capture_output=True, env=own)
    return programs


@pytest.fixture(scope="session")
def programs() -> Path:
    if reason := why_not():
        pytest.skip(reason)
    return build(cache())


@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_passes(programs, name):
    options, limit = PROGRAMS[name]
    outcome = under_exec(programs / name.split()[0], *options, timeout=limit, options=("--summary",))
    assert outcome.status != SKIPPED, outcome.out + outcome.err
    assert outcome.status == PASSED, outcome.out + outcome.err


@pytest.mark.parametrize(("missing", "name"), [(missing, name) for missing, names in SKIPS.items() for name in names])
def test_what_skips_misses_something_that_the_limits_name(programs, missing, name):
    assert missing in LIMITS
    outcome = under_exec(programs / "x86_64" / name, timeout=60)
    assert outcome.status == SKIPPED, outcome.out + outcome.err
