"""``kickstand vm``: virtual machines."""

from __future__ import annotations

from typing import Annotated

import typer

from app.commands.common import DEFAULT_URL, AsJson, Token, Uds, Url, VmName, connected, show

app = typer.Typer(no_args_is_help=True, help="Virtual machines: create, look, kick, resume, destroy.")


@app.command("list")
def list_vms(url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None, as_json: AsJson = False) -> None:
    """List all VMs."""
    with connected(url, token, uds, "default") as client:
        answer = client.vms()
    if as_json:
        show(answer, as_json=True)
        return
    for vm in answer["vms"]:
        print(
            f"{vm['id']:<16} {vm['variant']:<22} {vm['engine']:<7} {len(vm['vcpus']):>4} vcpus"
            f"  {'kicked' if vm['kicked'] else ''}"
        )


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(help="Its id; a free one is chosen otherwise.")] = None,
    vcpus: Annotated[int, typer.Option(help="How many vCPUs.")] = 1,
    variant: Annotated[str | None, typer.Option(help="The variant of the proposal.")] = None,
    engine: Annotated[str | None, typer.Option(help="script, x86 or kvm.")] = None,
    mode: Annotated[str | None, typer.Option(help="precise or fast (x86).")] = None,
    irqchip: Annotated[bool, typer.Option("--irqchip", help="With an in-kernel irqchip.")] = False,
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Create a VM with its vCPUs."""
    options = {"id": name, "variant": variant, "engine": engine, "mode": mode}
    given = {key: value for key, value in options.items() if value is not None}
    with connected(url, token, uds, "default") as client:
        show(client.create_vm(vcpus=vcpus, irqchip=irqchip, **given), as_json=as_json)


@app.command()
def delete(vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None) -> None:
    """Destroy the VM; parked runs answer EIO."""
    with connected(url, token, uds, vm) as client:
        client.delete()


@app.command()
def state(
    vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None, as_json: AsJson = False
) -> None:
    """Show the VM."""
    with connected(url, token, uds, vm) as client:
        show(client.state(), as_json=as_json)


@app.command()
def kick(
    timeout_ms: Annotated[int | None, typer.Option(help="Give up after so long.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """KVM_KICK_ALL_RUNNING_VCPUS."""
    with connected(url, token, uds, vm) as client:
        show(client.kick(timeout_ms), as_json=as_json)


@app.command()
def resume(
    vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None, as_json: AsJson = False
) -> None:
    """KVM_RESUME_ALL_KICKED_VCPUS."""
    with connected(url, token, uds, vm) as client:
        show(client.resume(), as_json=as_json)


@app.command()
def locks(
    vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None, as_json: AsJson = False
) -> None:
    """Who holds the semaphore, and who waits."""
    with connected(url, token, uds, vm) as client:
        show(client.locks(), as_json=as_json)
