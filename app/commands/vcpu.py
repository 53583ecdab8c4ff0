"""``kickstand vcpu``: one vCPU."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from app.commands.common import DEFAULT_URL, AsJson, Token, Uds, Url, VmName, connected, number, show

app = typer.Typer(no_args_is_help=True, help="vCPUs: run, registers, programs, server-side threads.")
Vcpu = Annotated[int, typer.Argument(help="The vCPU's id.")]


@app.command()
def create(
    vcpu: Vcpu,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """KVM_CREATE_VCPU."""
    with connected(url, token, uds, vm) as client:
        show(client.create_vcpu(vcpu), as_json=as_json)


@app.command("list")
def list_vcpus(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """The table of vCPUs."""
    with connected(url, token, uds, vm) as client:
        answer = client.vcpus(state)
    if as_json:
        show(answer, as_json=True)
        return
    from app.commands.watch import console, vcpu_table

    console().print(vcpu_table(answer["vcpus"]))


@app.command("show")
def show_vcpu(
    vcpu: Vcpu,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Show one vCPU."""
    with connected(url, token, uds, vm) as client:
        show(client.vcpu(vcpu), as_json=as_json)


@app.command()
def run(
    vcpu: Vcpu,
    reply: Annotated[str | None, typer.Option(help="The device's answer to the last IN or MMIO read, as hex.")] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="Leave with EINTR after so long.")] = None,
    immediate_exit: Annotated[
        bool | None, typer.Option("--immediate-exit", help="Complete what is pending, then EINTR.")
    ] = None,
    nowait: Annotated[
        bool | None, typer.Option("--nowait", help="EBUSY instead of waiting for another KVM_RUN.")
    ] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """KVM_RUN; prints how the vCPU left it."""
    try:
        data = None if reply is None else bytes.fromhex(reply)
    except ValueError:
        raise typer.BadParameter(f"{reply!r} is not hex", param_hint="--reply") from None
    with connected(url, token, uds, vm) as client:
        show(
            client.run(vcpu, reply=data, timeout_ms=timeout_ms, immediate_exit=immediate_exit, nowait=nowait),
            as_json=as_json,
        )


@app.command()
def regs(
    vcpu: Vcpu,
    changes: Annotated[list[str] | None, typer.Argument(help="rip=0x1000 rax=1 ... sets these first.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """KVM_GET_REGS, after KVM_SET_REGS for what is given."""
    wanted = dict(_assignment(change) for change in changes or ())
    with connected(url, token, uds, vm) as client:
        show(client.set_regs(vcpu, **wanted) if wanted else client.regs(vcpu), as_json=as_json)


def _assignment(text: str) -> tuple[str, int]:
    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, number(value)


@app.command()
def program(
    vcpu: Vcpu,
    steps: Annotated[str, typer.Argument(help='The script guest\'s program as JSON: [["read", 4096], ["spin"]]')],
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Load a script guest's program."""
    try:
        parsed = json.loads(steps)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="STEPS") from None
    with connected(url, token, uds, vm) as client:
        show(client.set_program(vcpu, parsed), as_json=as_json)


@app.command()
def signal(vcpu: Vcpu, vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None) -> None:
    """Send a signal to the vCPU's thread."""
    with connected(url, token, uds, vm) as client:
        client.signal(vcpu)


@app.command()
def start(
    vcpu: Vcpu,
    behaviour: Annotated[str, typer.Option(help="well waits for RESUME after EINTR; careless does not.")] = "well",
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Start a server-side VMM thread that loops KVM_RUN."""
    with connected(url, token, uds, vm) as client:
        show(client.start(vcpu, behaviour), as_json=as_json)


@app.command()
def stop(
    vcpu: Vcpu,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Stop it."""
    with connected(url, token, uds, vm) as client:
        show(client.stop(vcpu), as_json=as_json)
