from __future__ import annotations

from tests.benchmarks.phases import wrap_curation


class Noted:
    """In the place of `Phases`: notes the functions and leaves them as they are."""

    def __init__(self) -> None:
        self.functions: list[object] = []

    def wrap(self, owner: object, name: str, label: object) -> None:
        self.functions.append(getattr(owner, name))


def test_every_phase_is_a_function_of_the_driver() -> None:
    noted = Noted()
    wrap_curation(noted)
    assert noted.functions
    assert all(map(callable, noted.functions))
