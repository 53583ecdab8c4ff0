"""What every client command is made of: where the server is, one call, one answer printed.

``client_command`` adds ``--vm``, ``--url``, ``--token``, ``--token-file``, ``--uds`` and ``--json`` to a function that
takes a ``Client`` and returns an answer, so that a command is its call and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from kickstand.client import DEFAULT_URL, Client, KickstandError
from kickstand.commands.client.show import show
from kickstand.commands.client.trouble import USAGE, Trouble, refused

Url = Annotated[str, typer.Option("--url", metavar="URL", envvar="KICKSTAND_URL", help="The server.")]
Token = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", envvar="KICKSTAND_TOKEN", help="Bearer token.", show_default=False),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", envvar="KICKSTAND_TOKEN_FILE", help="A file with it.", show_default=False
    ),
]
Uds = Annotated[
    str | None,
    typer.Option("--uds", metavar="PATH", envvar="KICKSTAND_UDS", help="The server's Unix socket.", show_default=False),
]
VmName = Annotated[str, typer.Option("--vm", metavar="NAME", envvar="KICKSTAND_VM", help="The virtual machine.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

F = TypeVar("F", bound=Callable[..., object])
_SERVER: dict[str, tuple[Any, object]] = {
    "url": (Url, DEFAULT_URL),
    "token": (Token, None),
    "token_file": (TokenFile, None),
    "uds": (Uds, None),
}


@contextmanager
def connected(
    url: str, token: str | None, token_file: Path | None, uds: str | None, vm: str
) -> Generator[Client, None, None]:
    """A client. A refusal of the server, or no answer from it, is ``Trouble`` with one clear line."""
    import httpx

    try:
        with Client(url, vm=vm, token=token_of(token, token_file), uds=uds) as client:
            yield client
    except KickstandError as error:
        raise refused(error.problem) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Trouble(f"--url {url}: {error}", status=USAGE) from None
    except (httpx.HTTPError, UnicodeEncodeError) as error:
        raise Trouble(f"no answer from {uds or url}: {error}; is 'kickstand serve' running?") from None


def token_of(token: str | None, file: Path | None) -> str | None:
    """The bearer token that was given, by itself or in a file."""
    found = token or None if token is not None or file is None else file.read_text(encoding="utf-8").strip()
    if found is not None and not (found.isascii() and found.isprintable() and len(found.split()) == 1):
        raise Trouble("a token is one word of printable ASCII characters")
    return found


def client_command(
    group: typer.Typer, name: str | None = None, *, shown: Callable[[Any], object] = show, of_vm: bool = True
) -> Callable[[F], F]:
    """Make a command of ``group`` of a function ``(client, ...) -> answer``.

    ``shown`` prints the answer for people; with ``--json`` it is printed as it came, in one line. A function that
    has an argument ``as_json`` prints by itself, as it goes.
    """

    def register(function: F) -> F:
        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        own = [parameter.replace(annotation=hints[parameter.name]) for parameter in signature.parameters.values()][1:]
        prints = "as_json" in signature.parameters
        added: dict[str, tuple[Any, object]] = {"vm": (VmName, "default")} if of_vm else {}
        added |= _SERVER | ({} if prints else {"as_json": (AsJson, False)})

        def run(**given: Any) -> None:
            server = {name: given.pop(name) for name in _SERVER}
            vm = given.pop("vm", "default") if of_vm else "default"
            as_json = given.get("as_json", False) if prints else given.pop("as_json")
            with connected(**server, vm=vm) as client:
                answer = function(client, **given)
            if not prints:
                show(answer, as_json=True) if as_json else shown(answer)

        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in added.items()
        ]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + options
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        group.command(name)(run)
        return function

    return register
