"""``kickstand memory``: host memory, slots, transactions, dirty logs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kickstand.client import Client, Json
from kickstand.commands.client.connection import client_command
from kickstand.commands.client.given import number
from kickstand.commands.client.options import Address, Bytes, JsonList, Output, Size, Slot, group
from kickstand.commands.client.output import write as write_out
from kickstand.commands.client.show import columns

app = group("Memory: host memory, slots, transactions, dirty logs.")


@client_command(app)
def allocate(
    client: Client,
    size: Size,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="A name of your own.")] = None,
) -> Json:
    """Allocate host memory: the VMM's mmap."""
    return client.allocate(size, name)


def _print_regions(answer: Json) -> None:
    heads = ["slot", "guest-physical", "size", "host address", "flags"]
    rows = [
        [str(region["slot"]), region["guest_phys_addr"], f"{region['memory_size']:#x}", region["userspace_addr"],
         str(region["flags"])]
        for region in answer["regions"]
    ]  # fmt: skip
    print("\n".join(columns([heads, *rows], right=[0, 1, 2, 3])) if rows else "no slots")


@client_command(app, "list", shown=_print_regions)
def list_regions(client: Client) -> Json:
    """The memory slots."""
    return client.regions()


@client_command(app, "set")
def set_region(
    client: Client,
    slot: Slot,
    guest_phys_addr: Annotated[int, typer.Argument(parser=number, metavar="GPA", help="Where the guest sees it.")],
    memory_size: Annotated[int, typer.Argument(parser=number, metavar="BYTES", help="Its size; 0 deletes.")],
    userspace_addr: Annotated[int, typer.Argument(parser=number, metavar="HVA", help="The host memory behind it.")],
    flags: Annotated[int, typer.Option(parser=number, metavar="FLAGS", help="1 log dirty pages, 2 readonly.")] = 0,
) -> Json:
    """KVM_SET_USER_MEMORY_REGION."""
    return client.set_region(slot, guest_phys_addr, memory_size, userspace_addr, flags)


@client_command(app)
def delete(client: Client, slot: Slot) -> None:
    """Delete one slot."""
    client.delete_region(slot)


@client_command(app)
def transaction(
    client: Client,
    operations: JsonList,
    protect: Annotated[
        Literal["kick", "none", "list"] | None, typer.Option(help="What the variant means otherwise.")
    ] = None,
    timeout_ms: Annotated[int | None, typer.Option(min=0, metavar="MS", help="Give up after so long.")] = None,
) -> Json:
    """Several slot changes, all or none: a JSON list."""
    return client.memory_transaction(operations, protect, timeout_ms)


@client_command(app, "dirty-log")
def dirty_log(client: Client, slot: Slot) -> Json:
    """KVM_GET_DIRTY_LOG: the pages written since the last call."""
    return client.dirty_log(slot)


@client_command(app, "clear-dirty-log")
def clear_dirty_log(client: Client, slot: Slot) -> Json:
    """KVM_CLEAR_DIRTY_LOG of the whole slot."""
    return client.clear_dirty_log(slot)


@client_command(app)
def read(client: Client, userspace_addr: Address, length: Size, output: Output = None) -> str | None:
    """Print host memory as hex, or write its bytes to a file."""
    data = client.read_host(userspace_addr, length)
    if output is None:
        return data.hex()
    write_out(data, output)
    return None


@client_command(app)
def write(client: Client, userspace_addr: Address, data: Bytes) -> None:
    """Write host memory."""
    client.write_host(userspace_addr, data)
