"""The instances by name: what a request's ``model`` is looked up in."""

from __future__ import annotations

from collections.abc import Iterable

from byzerllm.errors import ModelNotFound
from byzerllm.routing.instance import Instance


class Table:
    """Instances that take requests."""

    def __init__(self) -> None:
        self._instances: dict[str, Instance] = {}

    def put(self, instance: Instance) -> None:
        self._instances[instance.name] = instance

    def remove(self, name: str) -> None:
        self._instances.pop(name, None)

    def get(self, name: str) -> Instance:
        """The instance of that name.

        Raises:
            ModelNotFound: there is none; the message lists the names there are.
        """
        try:
            return self._instances[name]
        except KeyError:
            raise no_such_model(name, self._instances) from None

    def names(self) -> list[str]:
        return sorted(self._instances)

    def all(self) -> list[Instance]:
        return [self._instances[name] for name in self.names()]


def no_such_model(name: str, names: Iterable[str]) -> ModelNotFound:
    """The error for an unknown name: lists the known ones, shortened where there are very many."""
    known = sorted(names)
    shown = ", ".join(known[:50]) + (f" and {len(known) - 50} more" if len(known) > 50 else "")
    hint = f"Deployed: {shown}." if known else "Nothing is deployed; `byzerllm deploy` starts an instance."
    return ModelNotFound(
        f"There is no instance named {name!r}.", hint=hint, param="model", details={"names": known[:1000]}
    )
