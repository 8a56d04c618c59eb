"""The actor's class travels to clients that have nothing of ours: what it may refer to."""

from __future__ import annotations

import inspect

from byzerllm.gateway.legacy import actor


def test_the_class_goes_as_code_and_refers_to_nothing_here() -> None:
    assert "<locals>" in actor.LegacyInstance.__qualname__  # so that it cannot be imported by name
    methods = inspect.getmembers(actor.LegacyInstance, inspect.isfunction)
    assert {name for name, _ in methods} >= {"get", "give_back", "stat", "async_apply", "get_item", "until_killed"}
    for name, method in methods:
        assert method.__closure__ is None, name
        assert not set(method.__code__.co_names) & set(vars(actor)), name
        assert all(isinstance(a, str) for a in method.__annotations__.values()), name
