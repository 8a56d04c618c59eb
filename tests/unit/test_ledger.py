"""Which GPUs a worker gets, and which deployments are refused for want of room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm.errors import CapacityExceeded
from byzerllm.runtime.base import Capacity
from byzerllm.runtime.ledger import Ledger
from byzerllm.spec import DeploymentSpec


def ledger(cpus: float = 8, gpus: float = 2) -> Ledger:
    return Ledger(Capacity(cpus, gpus))


def spec(
    name: str = "m", kind: str = "custom/auto", workers: int = 1, cpus: float = 0, gpus: float = 0
) -> DeploymentSpec:
    return DeploymentSpec(
        name=name, pretrained_model_type=kind, num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus
    )


def test_whole_gpus_are_held_until_they_are_dropped() -> None:
    book = ledger(gpus=3)
    assert (book.take("a", 1), book.take("b", 2)) == ((0,), (1, 2))
    assert book.take("a", 1) == (0,), "the same ones again"
    assert not book.has_room(1)
    with pytest.raises(CapacityExceeded, match=r"asks for 1 GPUs, but 0 of 3 are free \(held by a, b\)"):
        book.take("c", 1)
    book.drop("b")
    book.drop("b")
    assert book.has_room(2)
    assert book.take("c", 1) == (1,)


def test_shares_of_a_gpu_are_packed_and_add_up_to_one() -> None:
    book = ledger(gpus=2)
    assert [book.take(str(n), 0.4) for n in range(4)] == [(0,), (0,), (1,), (1,)]
    assert book.has_room(0.2)
    with pytest.raises(CapacityExceeded, match=r"but 0\.4 of 2 are free"):
        book.take("more", 0.4)


def test_ten_tenths_are_one() -> None:
    book = ledger(gpus=1)
    assert [book.take(str(n), 0.1) for n in range(10)] == [(0,)] * 10
    assert not book.has_room(0.1)


def test_a_worker_without_gpus_needs_no_room() -> None:
    book = ledger(gpus=0)
    assert book.take("a", 0) == ()
    assert book.has_room(0)
    assert not book.has_room(1)
    with pytest.raises(CapacityExceeded, match="held by nobody"):
        book.take("b", 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0.25, 0.5, 0.7, 1, 2])), max_size=40))
def test_no_gpu_is_given_out_beyond_its_whole(steps: list[tuple[int, float]]) -> None:
    book = ledger(gpus=4)
    held: dict[int, tuple[tuple[int, ...], float]] = {}
    for worker, wanted in steps:
        if worker in held:
            book.drop(str(worker))
            del held[worker]
            continue
        try:
            held[worker] = (book.take(str(worker), wanted), wanted)
        except CapacityExceeded:
            assert not book.has_room(wanted)
        used = [sum(min(w, 1) for devices, w in held.values() if device in devices) for device in range(4)]
        assert max(used) <= 1 + 1e-9
        assert all(len(devices) == (w if w >= 1 else w > 0) for devices, w in held.values())


def test_a_deployment_that_fits_beside_the_others_is_admitted() -> None:
    book = ledger(cpus=8, gpus=2)
    book.admit(spec(workers=2, cpus=4, gpus=1), [])
    book.admit(spec(workers=3, cpus=1, gpus=0.5), [spec("a", cpus=5, gpus=0.5), spec("s", "saas/openai", 99, cpus=9)])
    book.admit(spec(workers=10, cpus=0.1), [spec("a", workers=70, cpus=0.1)])


@pytest.mark.parametrize(
    ("asked", "others", "message"),
    [
        (
            spec(workers=3, cpus=3),
            [],
            "--cpus_per_worker 3 for 3 workers asks for 9 CPUs, but this machine has 8 CPUs.",
        ),
        (
            spec(gpus=1),
            [spec("a", gpus=1.0), spec("b", workers=2, gpus=0.5), spec("c", cpus=1)],
            "--gpus_per_worker 1 asks for 1 GPU, but this machine has 2 GPUs, of which 2 are held by a, b.",
        ),
        (
            spec(kind="saas/openai", workers=1000, gpus=3),
            [spec("a", gpus=1)],
            "--gpus_per_worker 3 asks for 3 GPUs, but this machine has 2 GPUs.",
        ),
    ],
)
def test_a_deployment_that_does_not_fit_is_refused_with_the_numbers(
    asked: DeploymentSpec, others: list[DeploymentSpec], message: str
) -> None:
    with pytest.raises(CapacityExceeded) as refused:
        ledger().admit(asked, others)
    assert refused.value.message == message
    hint = "Ask for less, or free some with `byzerllm undeploy`." if "held by" in message else "Ask for less."
    assert refused.value.hint == hint
    assert refused.value.param == message[2 : message.index(" ")]


def test_without_a_gpu_it_is_said_how_to_do_without() -> None:
    with pytest.raises(CapacityExceeded, match="--gpus_per_worker 1 asks for 1 GPU, but this machine has no GPU") as no:
        ledger(gpus=0).admit(spec(gpus=1), [])
    assert no.value.hint
    assert "run on the CPU" in no.value.hint


def test_a_saas_instance_only_has_to_fit_alone() -> None:
    ledger().admit(spec(kind="saas/openai", workers=100_000, cpus=8), [spec("a", cpus=8, gpus=2)])


def test_places_are_the_gpus_that_others_leave() -> None:
    book = ledger(gpus=3)
    book.take("mine.1.0", 1)
    book.take("other.1.0", 1)
    assert book.places(spec("mine", gpus=1)) == {0: True, 2: False}
    assert book.places(spec("mine", gpus=0)) == {}
    book.take("shared.1.0", 0.5)
    assert book.places(spec("new", gpus=0.5)) == {2: False}
    assert book.places(spec("new", gpus=0.75)) == {}
