"""Fake vendors, one file a wire format: what the real ones send, written from their documents and not from our code."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from tests.vendors.base import FakeVendor


def fakes() -> list[FakeVendor]:
    """Every fake in this folder."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    return [import_module(f"{__name__}.{name}").FAKE for name in names]
