"""What an object store may answer for good, as errors that more than one part of the programs tells apart."""

from __future__ import annotations


class StoreUnreachable(OSError):
    """An object store has failed for so long that nothing can go on; the same call may work later."""


class ObjectUnreachable(OSError):
    """One object did not come for so long, though its store answers: it need not stop what reads others."""


class NoBucket(ValueError):
    """An object store has no bucket of that name."""
