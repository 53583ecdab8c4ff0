"""``kickstand vcpu``: one vCPU."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from kickstand.client import Client, Json
from kickstand.commands.client.connection import client_command
from kickstand.commands.client.given import assignment, hex_or_file, number, object_or_file
from kickstand.commands.client.options import Behaviour, JsonList, Vcpu, group
from kickstand.commands.client.show import vcpu_table

app = group("vCPUs: run, registers, programs, server-side threads.")
State = Literal["user", "waiting", "kernel", "guest", "exiting", "halted", "blocked"]
MpState = Literal["RUNNABLE", "UNINITIALIZED", "INIT_RECEIVED", "HALTED", "SIPI_RECEIVED"]


@client_command(app)
def create(client: Client, vcpu: Vcpu) -> Json:
    """KVM_CREATE_VCPU."""
    return client.create_vcpu(vcpu)


def _print_vcpus(answer: Json) -> None:
    print("\n".join(vcpu_table(answer["vcpus"])) if answer["vcpus"] else "no vCPUs")


@client_command(app, "list", shown=_print_vcpus)
def list_vcpus(
    client: Client, state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None
) -> Json:
    """The table of vCPUs."""
    return client.vcpus(state)


@client_command(app, "show")
def show_vcpu(client: Client, vcpu: Vcpu) -> Json:
    """Show one vCPU."""
    return client.vcpu(vcpu)


@client_command(app)
def run(
    client: Client,
    vcpu: Vcpu,
    reply: Annotated[
        bytes | None,
        typer.Option(parser=hex_or_file, metavar="HEX", help="The device's answer to the last IN or MMIO read."),
    ] = None,
    timeout_ms: Annotated[int | None, typer.Option(min=0, metavar="MS", help="Leave with EINTR after so long.")] = None,
    immediate_exit: Annotated[
        bool | None, typer.Option("--immediate-exit", help="Complete what is pending, then EINTR.")
    ] = None,
    nowait: Annotated[
        bool | None, typer.Option("--nowait", help="EBUSY instead of waiting for another KVM_RUN.")
    ] = None,
) -> Json:
    """KVM_RUN; prints how the vCPU left it."""
    return client.run(vcpu, reply=reply, timeout_ms=timeout_ms, immediate_exit=immediate_exit, nowait=nowait)


@client_command(app)
def regs(
    client: Client,
    vcpu: Vcpu,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="rip=0x1000 rax=1 ... are set first.")
    ] = None,
) -> Json:
    """KVM_GET_REGS, after KVM_SET_REGS for what is given."""
    wanted = dict(assignment(change) for change in changes or ())
    return client.set_regs(vcpu, **wanted) if wanted else client.regs(vcpu)


@client_command(app)
def sregs(
    client: Client,
    vcpu: Vcpu,
    changes: Annotated[
        Any, typer.Option("--set", parser=object_or_file, metavar="JSON", help="Set these first.")
    ] = None,
) -> Json:
    """KVM_GET_SREGS, after KVM_SET_SREGS for what is given."""
    return client.sregs(vcpu) if changes is None else client.set_sregs(vcpu, changes)


@client_command(app, "mp-state")
def mp_state(
    client: Client, vcpu: Vcpu, state: Annotated[MpState | None, typer.Argument(help="Set it first.")] = None
) -> Json:
    """KVM_GET_MP_STATE, after KVM_SET_MP_STATE if one is given."""
    return client.mp_state(vcpu) if state is None else client.set_mp_state(vcpu, state)


@client_command(app)
def interrupt(
    client: Client, vcpu: Vcpu, vector: Annotated[int, typer.Argument(parser=number, metavar="VECTOR")]
) -> None:
    """KVM_INTERRUPT."""
    client.interrupt(vcpu, vector)


@client_command(app)
def nmi(client: Client, vcpu: Vcpu) -> None:
    """KVM_NMI."""
    client.nmi(vcpu)


@client_command(app)
def program(client: Client, vcpu: Vcpu, steps: JsonList) -> Json:
    """Load a script guest's program: '[["read", 4096], ["spin"]]'."""
    return client.set_program(vcpu, steps)


@client_command(app)
def signal(client: Client, vcpu: Vcpu) -> None:
    """Send a signal to the vCPU's thread."""
    client.signal(vcpu)


@client_command(app)
def start(
    client: Client,
    vcpu: Vcpu,
    behaviour: Annotated[
        Behaviour, typer.Option(help="well waits for RESUME after EINTR; careless does not.")
    ] = Behaviour.WELL,
) -> Json:
    """Start a server-side VMM thread that loops KVM_RUN."""
    return client.start(vcpu, behaviour)


@client_command(app)
def stop(client: Client, vcpu: Vcpu) -> Json:
    """Stop it."""
    return client.stop(vcpu)
