"""Which CPUs and GPUs are spoken for on a runtime."""

from __future__ import annotations

from collections.abc import Iterable

from byzerllm.errors import CapacityExceeded
from byzerllm.runtime.base import Capacity, instance_of
from byzerllm.runtime.capacity import assign_gpus
from byzerllm.spec import DeploymentSpec


class Ledger:
    """GPUs by worker, and the admission of new instances. Shares of one GPU add up to at most 1."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._taken: dict[str, tuple[tuple[int, ...], float]] = {}

    def take(self, worker_id: str, wanted: float) -> tuple[int, ...]:
        """The GPUs of a worker; the same ones again for one that has some.

        Raises:
            CapacityExceeded: not enough are free; says by which workers they are held.
        """
        if worker_id in self._taken:
            return self._taken[worker_id][0]
        if wanted <= 0:
            return ()
        devices = assign_gpus(self._free(), wanted)
        if devices is None:
            holders = ", ".join(sorted(self._taken)) or "nobody"
            raise CapacityExceeded(
                f"A worker asks for {wanted:g} GPUs, but {sum(self._free().values()):g} of "
                f"{self.capacity.gpus:g} are free (held by {holders})."
            )
        self._taken[worker_id] = (devices, wanted)
        return devices

    def hold(self, worker_id: str, devices: tuple[int, ...], wanted: float) -> None:
        """Enter what a running worker has, as it was given by an earlier server."""
        if devices:
            self._taken[worker_id] = (devices, wanted)

    def drop(self, worker_id: str) -> None:
        """The worker's GPUs are free again."""
        self._taken.pop(worker_id, None)

    def has_room(self, wanted: float) -> bool:
        """Whether one worker more would get its GPUs."""
        return wanted <= 0 or assign_gpus(self._free(), wanted) is not None

    def places(self, spec: DeploymentSpec) -> dict[int, bool]:
        """The GPUs that new workers of ``spec`` may get, and whether older ones of its own are on them, which leave."""
        wanted = min(spec.gpus_per_worker, 1.0)
        free = {device: 1.0 for device in range(int(self.capacity.gpus))} if wanted > 0 else {}
        own = set()
        for worker_id, (devices, share) in self._taken.items():
            for device in devices:
                if instance_of(worker_id) == spec.name:
                    own.add(device)
                elif device in free:
                    free[device] -= min(share, 1.0)
        return {device: device in own for device, left in free.items() if left + 1e-9 >= wanted}

    def admit(self, spec: DeploymentSpec, others: Iterable[DeploymentSpec]) -> None:
        """Refuse what can never run beside the others. SaaS workers are no processes: each only has to fit alone.

        Raises:
            CapacityExceeded: with the numbers.
        """
        specs = [s for s in others if not s.is_saas]
        workers = 1 if spec.is_saas else spec.num_workers
        for unit, flag, total in (
            ("CPU", "cpus_per_worker", self.capacity.cpus),
            ("GPU", "gpus_per_worker", self.capacity.gpus),
        ):
            wanted = getattr(spec, flag) * workers
            held = 0.0 if spec.is_saas else sum(getattr(s, flag) * s.num_workers for s in specs)
            if wanted > total - held + 1e-9:
                names = ", ".join(s.name for s in specs if getattr(s, flag))
                asked = f"--{flag} {getattr(spec, flag):g}" + (f" for {workers} workers" if workers > 1 else "")
                raise CapacityExceeded(
                    f"{asked} asks for {_count(wanted, unit)}, but this machine has {_count(total, unit)}"
                    + (f", of which {held:g} are held by {names}." if held else "."),
                    hint=_advice(unit, total, held),
                    param=flag,
                )

    def _free(self) -> dict[int, float]:
        free = {device: 1.0 for device in range(int(self.capacity.gpus))}
        for devices, wanted in self._taken.values():
            for device in devices:
                free[device] = free.get(device, 0.0) - (wanted if wanted < 1 else 1.0)
        return free


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}" if number else f"no {unit}"


def _advice(unit: str, total: float, held: float) -> str:
    if unit == "GPU" and not total:
        return "Leave it out to run on the CPU. nvidia-smi tells whether the driver knows of a GPU."
    return "Ask for less, or free some with `byzerllm undeploy`." if held else "Ask for less."
