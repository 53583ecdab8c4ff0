"""Prometheus metrics, read from the machines when they are scraped; one series per VM, not per vCPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kickstand.api.context import Context
from kickstand.core.trace import VcpuState
from kickstand.runtime.machine import Machine

# Field of a vCPU's counters, KVM's name for it, what it counts.
COUNTERS = (
    ("runs", "runs", "KVM_RUN calls"),
    ("exits", "exits", "KVM_RUN calls that returned an exit"),
    ("eintr", "eintr", "KVM_RUN calls that returned EINTR"),
    ("spins", "spins", "EINTR again without having entered the guest since the last"),
    ("entries", "guest_entries", "Entries of the guest"),
    ("halts", "halt_exits", "Sleeps after HLT"),
    ("halt_wakeups", "halt_wakeup", "Sleeps that were ended by a wake-up"),
    ("signal_exits", "signal_exits", "KVM_RUN calls that a signal ended"),
    ("request_irq_exits", "request_irq_exits", "Exits because of an IPI"),
    ("mmio", "mmio_exits", "MMIO exits to userspace"),
    ("pio", "io_exits", "Port I/O exits to userspace"),
    ("faults_retried", "pf_retried", "Page faults that met a slot under change"),
)


def registry_of(context: Context) -> CollectorRegistry:
    """A registry of this server's own."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Machines(context))
    return registry


class _Machines(Collector):
    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        machines = tuple(self._context.registry.machines.values())
        yield from self._server()
        yield from _states(machines)
        yield from _vm_metrics(machines)
        yield from _counters(machines)

    def _server(self) -> Iterator[Metric]:
        registry, hub = self._context.registry, self._context.hub
        yield GaugeMetricFamily("kickstand_vms", "Virtual machines", value=len(registry.machines))
        yield GaugeMetricFamily(
            "kickstand_parked_runs", "KVM_RUN calls of clients under way", value=registry.parked_runs
        )
        yield GaugeMetricFamily("kickstand_streams", "Event streams open", value=hub.streams)
        yield CounterMetricFamily("kickstand_stream_gaps", "Gaps told to slow readers of streams", value=hub.gaps)
        yield CounterMetricFamily("kickstand_events", "Events recorded", value=registry.log.seq)
        yield GaugeMetricFamily("kickstand_ready", "New work is taken", value=not self._context.not_ready())
        journal = self._context.journal
        if journal is not None and journal.running:
            for name, meaning, value in journal.gauges():
                yield GaugeMetricFamily(f"kickstand_journal_{name}", meaning, value=value)
            commits = journal.store.commits
            yield CounterMetricFamily("kickstand_journal_commits", "Commits of the journal", value=commits)


def _states(machines: tuple[Machine, ...]) -> Iterator[Metric]:
    metric = GaugeMetricFamily("kickstand_vcpus", "vCPUs by state", labels=("vm", "state"))
    for machine in machines:
        found = Counter(vcpu.watched.state for vcpu in machine.vm.vcpus.values())
        for state in VcpuState:
            metric.add_metric((machine.id, state.value), found[state])
    yield metric


def _vm_metrics(machines: tuple[Machine, ...]) -> Iterator[Metric]:
    kicks = CounterMetricFamily("kickstand_vm_kicks", "Kicks that opened a window", labels=("vm",))
    holds = GaugeMetricFamily("kickstand_vm_holds", "Open kick windows", labels=("vm",))
    drains = CounterMetricFamily("kickstand_vm_drain_seconds", "Time that kicks waited for vCPUs", labels=("vm",))
    memory = GaugeMetricFamily("kickstand_vm_host_memory_bytes", "Host memory allocated", labels=("vm",))
    slots = GaugeMetricFamily("kickstand_vm_memory_slots", "Memory slots", labels=("vm",))
    for machine in machines:
        kicks.add_metric((machine.id,), machine.window.kick_id)
        drains.add_metric((machine.id,), machine.window.drained_ns / 1e9)
        holds.add_metric((machine.id,), machine.vm.variant.open_windows)
        memory.add_metric((machine.id,), machine.memory.allocated)
        slots.add_metric((machine.id,), len(machine.vm.memslots.slots))
    yield from (kicks, drains, holds, memory, slots)


def _counters(machines: tuple[Machine, ...]) -> Iterator[Metric]:
    totals = {machine.id: Counter[str]() for machine in machines}
    for machine in machines:
        for vcpu in machine.vm.vcpus.values():
            totals[machine.id].update(vcpu.watched.counters.by_name())
    for field, name, meaning in COUNTERS:
        metric = CounterMetricFamily(f"kickstand_vcpu_{name}", meaning, labels=("vm",))
        for vm, total in totals.items():
            metric.add_metric((vm,), total[field])
        yield metric
