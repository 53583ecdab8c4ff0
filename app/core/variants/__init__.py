"""The variants of the proposal, found by scanning this folder: add a file, and it is there.

``variants()`` maps each name to its class. A user's own file joins through ``load_variant_module``.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from kickstand.core.errors import KvmError
from kickstand.core.variants._hooks import wrong_hooks
from kickstand.core.variants.base import Variant

__all__ = ["Variant", "load_variant_module", "summary", "variant", "variants"]

_own: dict[str, type[Variant]] = {}


def variants() -> dict[str, type[Variant]]:
    """Return every variant by name, sorted; those of ``load_variant_module`` included."""
    return _shipped() | _own


@cache
def _shipped() -> dict[str, type[Variant]]:
    names = sorted(
        module.name for module in pkgutil.iter_modules(__path__) if module.name != "base" and module.name[0] != "_"
    )
    return {name: _variant_in(importlib.import_module(f"{__name__}.{name}"), name) for name in names}


def variant(name: str) -> type[Variant]:
    """Return one variant's class. Raises ``KvmError`` EINVAL for a name that no file has."""
    known = variants()
    if name not in known:
        raise KvmError(
            errno.EINVAL, "KVM_CREATE_VM", f"no variant {name!r}; there are {', '.join(known)}", field="variant"
        )
    return known[name]


def load_variant_module(path: Path) -> type[Variant]:
    """Import a user's file and add the variant in it under the file's name.

    Raises ``ValueError`` if the file does not run, with the line, or has no subclass of ``Variant`` of its own;
    ``OSError`` if it cannot be read.
    """
    spec = importlib.util.spec_from_file_location(f"kickstand_variant_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that what it defines can go to other processes and back
    try:
        spec.loader.exec_module(module)
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{_line_of(error, path)}: {type(error).__name__}: {getattr(error, 'msg', error)}") from error
    _own[path.stem] = _variant_in(module, path.stem)
    return _own[path.stem]


def summary(variant: type[Variant]) -> str:
    """The first line of a variant's docstring."""
    return (variant.__doc__ or "").strip().partition("\n")[0]


def _line_of(error: BaseException, path: Path) -> str:
    """``file:line`` where running ``path`` came to its end."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _variant_in(module: ModuleType, name: str) -> type[Variant]:
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Variant) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise ValueError(
            f"{module.__file__}: a variant's file has exactly one subclass of Variant, this has {len(own)}"
        )
    own[0].name = name
    wrong = list(wrong_hooks(own[0], Variant))
    if wrong:
        raise ValueError(f"{module.__file__}: {'; '.join(wrong)}")
    return own[0]
