"""Structures of the ABI as bodies, made from ``core.uapi``, so that they cannot drift from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from kickstand.api.shapes.values import UNSIGNED, Body, Hex
from kickstand.core import uapi
from kickstand.core.uapi import layout

DOCS = {
    "kvm_regs": "General-purpose registers, instruction pointer and flags: ``kvm_regs``.",
    "kvm_sregs": "Segments, descriptor tables and control registers: ``kvm_sregs``.",
    "kvm_segment": "A segment register with its hidden part: ``kvm_segment``.",
    "kvm_dtable": "A descriptor-table register: ``kvm_dtable``.",
}
NAMES = {"kvm_regs": "Regs", "kvm_sregs": "Sregs", "kvm_segment": "Segment", "kvm_dtable": "DescriptorTable"}


def input_model(struct: layout.Struct) -> type[Body]:
    """The overlay of a structure: each field may be left out."""
    fields: dict[str, Any] = {
        member.name: (_input_type(member.kind) | None, None) for member in struct.fields if not member.hidden
    }
    doc = f"{DOCS[struct.name]} What is left out stays."
    return create_model(f"{NAMES[struct.name]}In", __base__=Body, __doc__=doc, **fields)


def _input_type(kind: layout.Kind) -> Any:
    if isinstance(kind, layout.Struct):
        return input_model(kind)
    if isinstance(kind, layout.Array):
        items: Any = list[_input_type(kind.item)]  # type: ignore[misc]  # a type made at run time
        return Annotated[items, Field(max_length=kind.count)]
    return UNSIGNED[kind.size]


def output_model(struct: layout.Struct) -> type[BaseModel]:
    """A structure as it is answered."""
    fields: dict[str, Any] = {
        member.name: (_output_type(member.kind), ...) for member in struct.fields if not member.hidden
    }
    return create_model(NAMES[struct.name], __doc__=DOCS[struct.name], **fields)


def _output_type(kind: layout.Kind) -> Any:
    if isinstance(kind, layout.Struct):
        return output_model(kind)
    if isinstance(kind, layout.Array):
        items: Any = list[_output_type(kind.item)]  # type: ignore[misc]  # a type made at run time
        return Annotated[items, Field(min_length=kind.count, max_length=kind.count)]
    if isinstance(kind, layout.Scalar) and kind.address:
        return Hex
    return Annotated[int, Field(ge=0, lt=1 << 8 * kind.size)]


RegsIn = input_model(uapi.KVM_REGS)
SregsIn = input_model(uapi.KVM_SREGS)
Regs = output_model(uapi.KVM_REGS)
Sregs = output_model(uapi.KVM_SREGS)
