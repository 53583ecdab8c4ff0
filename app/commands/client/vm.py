"""``kickstand vm``: virtual machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kickstand.client import Client, Json
from kickstand.commands.client.connection import client_command
from kickstand.commands.client.given import number
from kickstand.commands.client.options import Engine, JsonList, OneOf, Output, group
from kickstand.commands.client.output import write
from kickstand.commands.client.show import columns
from kickstand.commands.client.trouble import USAGE, Trouble

app = group("Virtual machines: create, look, kick, resume, destroy.")
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="Its id.", show_default=False)]


def _print_vms(answer: Json) -> None:
    rows = [[vm["id"], vm["variant"], vm["engine"], str(len(vm["vcpus"])), "kicked" if vm["kicked"] else ""]
            for vm in answer["vms"]]  # fmt: skip
    print("\n".join(columns([["vm", "variant", "engine", "vcpus", ""], *rows], right=[3])) if rows else "no VMs")


@client_command(app, "list", shown=_print_vms, of_vm=False)
def list_vms(client: Client) -> Json:
    """List all VMs."""
    return client.vms()


@client_command(app, of_vm=False)
def create(
    client: Client,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Its id; a free one is chosen otherwise.")] = None,
    vcpus: Annotated[int, typer.Option(min=0, help="How many vCPUs.")] = 1,
    variant: Annotated[str | None, typer.Option(metavar="VARIANT", help=OneOf)] = None,
    engine: Annotated[Engine | None, typer.Option(help="The guest engine.")] = None,
    mode: Annotated[Literal["precise", "fast"] | None, typer.Option(help="Of engine x86.")] = None,
    irqchip: Annotated[bool, typer.Option("--irqchip", help="With an in-kernel irqchip.")] = False,
) -> Json:
    """Create a VM with its vCPUs."""
    options = {"id": name, "variant": variant, "engine": engine, "mode": mode}
    given = {key: value for key, value in options.items() if value is not None}
    return client.create_vm(vcpus=vcpus, irqchip=irqchip, **given)


@client_command(app, shown=lambda answer: print(f"deleted {answer['deleted']}"), of_vm=False)
def delete(
    client: Client,
    name: Name = None,
    vm: Annotated[str | None, typer.Option("--vm", metavar="NAME", help="The same.", show_default=False)] = None,
) -> Json:
    """Destroy a VM; parked runs answer EIO. Its name is required."""
    if (name or vm) is None or None not in (name, vm):
        raise Trouble("which VM is to be deleted? kickstand vm delete NAME", status=USAGE)
    client.vm = name or vm or ""
    client.delete()
    return {"deleted": client.vm}


@client_command(app)
def state(client: Client) -> Json:
    """Show the VM."""
    return client.state()


@client_command(app)
def kick(
    client: Client,
    timeout_ms: Annotated[int | None, typer.Option(min=0, metavar="MS", help="Give up after so long.")] = None,
) -> Json:
    """KVM_KICK_ALL_RUNNING_VCPUS."""
    return client.kick(timeout_ms)


@client_command(app)
def resume(client: Client) -> Json:
    """KVM_RESUME_ALL_KICKED_VCPUS."""
    return client.resume()


@client_command(app)
def locks(client: Client) -> Json:
    """Who holds the semaphore, and who waits."""
    return client.locks()


@client_command(app)
def irqchip(client: Client) -> None:
    """KVM_CREATE_IRQCHIP."""
    client.create_irqchip()


@client_command(app, "irq-line")
def irq_line(
    client: Client,
    irq: Annotated[int, typer.Argument(metavar="IRQ", help="The line.")],
    level: Annotated[int, typer.Argument(metavar="LEVEL", min=0, max=1, help="0 or 1.")],
) -> None:
    """KVM_IRQ_LINE."""
    client.irq_line(irq, level)


@client_command(app)
def msi(
    client: Client,
    address: Annotated[int, typer.Argument(parser=number, metavar="ADDRESS")],
    data: Annotated[int, typer.Argument(parser=number, metavar="DATA")],
) -> Json:
    """KVM_SIGNAL_MSI."""
    return client.signal_msi(address, data)


@client_command(app)
def script(client: Client, operations: JsonList) -> Json:
    """Perform a list of ioctl-script operations in one request."""
    return client.script(operations)


@client_command(app, shown=lambda _: None)
def snapshot(client: Client, output: Output = None) -> Json:
    """Write a consistent snapshot, memory included, to a file."""
    data = client.snapshot()
    write(data, output)
    return {"bytes": len(data)}


@client_command(app, of_vm=False)
def restore(
    client: Client,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A snapshot.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Its new id; the old one otherwise.")] = None,
) -> Json:
    """Make a VM of a snapshot; it comes up kicked."""
    return client.restore(file.read_bytes(), name)
