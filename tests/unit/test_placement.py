"""Why a worker waits for its place on a cluster, and what is refused because there can never be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from byzerllm.errors import CapacityExceeded, InvalidInput
from byzerllm.runtime.base import Need
from byzerllm.runtime.placement import Node, bundles, check_need, check_possible, fits, places, wanted, why_waiting
from byzerllm.spec import DeploymentSpec


def node(total: Mapping[str, float], free: Mapping[str, float] | None = None) -> Node:
    return Node("n", "10.0.0.1", total=total, free=total if free is None else free)


def spec(kind: str = "custom/auto", **fields: object) -> DeploymentSpec:
    return DeploymentSpec(name="m", pretrained_model_type=kind, **fields)  # type: ignore[arg-type]


NEED = Need(cpus=0.5, gpus=1)


def test_the_scarcest_amount_says_for_how_many_workers_there_is_a_place() -> None:
    assert places(NEED, {"CPU": 4, "GPU": 3}, 9) == 3
    assert places(NEED, {"CPU": 1.4, "GPU": 3}, 9) == 2
    assert places(NEED, {"CPU": 4}, 9) == 0
    assert places(NEED, {"CPU": 64, "GPU": 64}, 9) == 9
    assert places(Need(cpus=0.1), {"CPU": 0.3}, 9) == 3, "though 0.3 / 0.1 is a bit less"
    assert places(Need(), {}, 9) == 9


def test_only_what_is_asked_for_is_wanted() -> None:
    assert wanted(Need()) == {}
    assert wanted(Need(0.001, 0, {"zephyr": 2, "none": 0})) == {"CPU": 0.001, "zephyr": 2}


def test_a_worker_fits_where_one_node_has_all_of_it() -> None:
    assert fits(NEED, [node({"CPU": 4}), node({"CPU": 1, "GPU": 1})])
    assert not fits(NEED, [node({"CPU": 4}), node({"CPU": 0.1, "GPU": 1})])
    assert not fits(NEED, [])
    assert fits(Need(), [node({})])


def test_it_waits_for_nothing_where_there_is_room() -> None:
    assert why_waiting(NEED, [node({"CPU": 1, "GPU": 1})], {}) == ""


def test_it_is_told_what_is_taken_and_by_whom() -> None:
    nodes = [node({"CPU": 8, "GPU": 1}, {"CPU": 8}), node({"CPU": 8, "GPU": 1}, {"CPU": 7})]
    held = {"zephyr_7b_chat": Need(gpus=2), "small": Need(cpus=1)}
    assert why_waiting(NEED, nodes, held) == (
        "waiting for a place: asked 1 GPU per worker, the cluster has 0 of 2 free, held by zephyr_7b_chat"
    )


def test_other_users_of_the_cluster_are_told_of() -> None:
    nodes = [node({"GPU": 4, "CPU": 8}, {"CPU": 8})]
    assert why_waiting(NEED, nodes, {"b": Need(gpus=1), "a": Need(gpus=1)}).endswith(
        "0 of 4 free, held by a, b, other users of the cluster"
    )
    assert why_waiting(NEED, nodes, {}).endswith("held by other users of the cluster")


def test_it_is_told_that_the_cluster_has_none_at_all() -> None:
    assert why_waiting(NEED, [node({"CPU": 8})], {}).endswith("asked 1 GPU per worker, the cluster has 0 of 0 free")


def test_it_is_told_of_everything_that_lacks() -> None:
    why = why_waiting(Need(2, 1), [node({"CPU": 2, "GPU": 1}, {"CPU": 1, "GPU": 0.5})], {})
    assert "asked 2 CPU per worker, the cluster has 1 of 2 free" in why
    assert "1 GPU per worker, the cluster has 0.5 of 1 free" in why


def test_it_is_told_when_no_node_has_all_together() -> None:
    nodes = [node({"CPU": 4}), node({"GPU": 1})]
    assert why_waiting(NEED, nodes, {}).endswith("asked 0.5 CPU, 1 GPU per worker, which no node has free together")


def test_what_an_empty_node_could_take_is_possible() -> None:
    check_possible(NEED, [node({"CPU": 4, "GPU": 8}, {})])
    check_possible(Need(resources={"zephyr": 1}), [node({}), node({"zephyr": 1})])


def test_more_than_any_node_has_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        CapacityExceeded, match=r"asks for 4 GPU, but no node of the cluster has more than 2\."
    ) as refused:
        check_possible(Need(gpus=4), [node({"GPU": 2}), node({"GPU": 2})])
    assert "--no_wait" in (refused.value.hint or "")
    with pytest.raises(CapacityExceeded, match="more than 0"):
        check_possible(Need(cpus=1), [])


def test_what_no_node_has_together_is_refused() -> None:
    with pytest.raises(CapacityExceeded, match=r"0\.5 CPU, 1 GPU, but no node of the cluster has them together"):
        check_possible(NEED, [node({"CPU": 4}), node({"GPU": 1})])


def test_a_resource_that_no_node_has_is_refused_with_those_there_are() -> None:
    nodes = [node({"CPU": 1, "node:10.0.0.1": 1, "memory": 5, "object_store_memory": 1, "zephyr": 1})]
    with pytest.raises(CapacityExceeded, match=r"has that resource\. There are: zephyr\.") as refused:
        check_possible(Need(resources={"zephir": 1}), nodes)
    assert refused.value.exit_code == 1
    assert "--resources '{\"zephir\": 1}'" in (refused.value.hint or "")
    with pytest.raises(CapacityExceeded, match="There are: none"):
        check_possible(Need(resources={"zephir": 1}), [node({"CPU": 1})])


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"cpus_per_worker": 1.5}, "cpus_per_worker"),
        ({"gpus_per_worker": 2.5}, "gpus_per_worker"),
        ({"resources": {"zephyr": 1.5}}, "resources"),
    ],
)
def test_a_broken_number_above_one_is_refused(fields: dict[str, Any], flag: str) -> None:
    with pytest.raises(InvalidInput, match=r"must be a whole number, or a fraction below 1\.") as refused:
        check_need(spec(**fields))
    assert refused.value.param == flag


@pytest.mark.parametrize("fields", [{"cpus_per_worker": 0.00001}, {"resources": {"zephyr": 0.00001}}])
def test_less_than_ray_counts_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"the smallest share is 0\.0001") as refused:
        check_need(spec(**fields))
    assert refused.value.param in fields


def test_fractions_and_whole_numbers_are_fine() -> None:
    check_need(spec(cpus_per_worker=0.001, gpus_per_worker=0.5, resources={"zephyr": 2}))
    check_need(spec("saas/openai", cpus_per_worker=1.5))


def test_a_vendor_takes_no_resources() -> None:
    with pytest.raises(InvalidInput, match="saas/openai"):
        check_need(spec("saas/openai", resources={"zephyr": 1}))


@pytest.mark.parametrize(
    ("cpus", "pieces"),
    [
        (0.002, [0.002]),
        (0.1 * 3, [0.3]),
        (0.00001, [0.0001]),
        (4, [4]),
        (10, [4.0, 4.0, 2.0]),
        (8, [4.0, 4.0]),
        (8.5, [4.0, 4.0, 0.5]),
    ],
)
def test_cpus_are_cut_into_pieces_that_fit_on_a_node(cpus: float, pieces: list[float]) -> None:
    assert bundles(cpus, [node({"CPU": 4}), node({"CPU": 2}), node({})]) == pieces


def test_without_a_node_the_cpus_stay_in_one_piece() -> None:
    assert bundles(3, []) == [3]
