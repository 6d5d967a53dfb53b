"""Predictors attached to the operators of a plan: which, how often they are read, and what is said of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fake_packs
import pytest

import frontier
from frontier.errors import ConfigError, PackError
from frontier.lowering import Lowered, lower
from frontier.models import load_model, operator_program
from frontier.models.layout import Layout
from frontier.predictors import chooser, loaded
from frontier.predictors.attach import attach_chosen
from frontier.predictors.loaded import opened

SCENARIO: dict[str, Any] = {
    "model": "qwen3-0.6b",
    "hardware": "h100",
    "engine": {"max_model_len": 4096},
    "workload": {
        "synthetic": {
            "arrivals": {"constant": {"rate": "20/s"}},
            "num_requests": 30,
            "prompt_tokens": 100,
            "output_tokens": 5,
        }
    },
}
AT = "engine.step_time.learned"


def scenario(*packs: Path, engine: dict[str, Any] | None = None, **learned: Any) -> frontier.Scenario:
    step_time = {"learned": {"packs": [str(pack) for pack in packs], **learned}}
    return frontier.Scenario.from_dict(
        {**SCENARIO, "engine": {**SCENARIO["engine"], **(engine or {}), "step_time": step_time}}
    )


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return fake_packs.write(tmp_path / "h100.safetensors", fake_packs.dense_model())


def operators(lowered: Lowered) -> dict[str, dict[str, Any]]:
    return {
        operator["name"]: operator
        for stage in lowered.plan["clusters"][0]["step_time"]["stages"]
        for operator in stage
    }


def identity_of(lowered: Lowered, reference: dict[str, Any]) -> str:
    assert lowered.attached is not None
    return lowered.attached.identities[reference["index"]]["id"]


def test_every_slot_has_the_predictor_of_its_family(pack: Path) -> None:
    lowered = lower(scenario(pack, engine={"tensor_parallel_size": 2}))
    planned = operators(lowered)
    assert lowered.step_time == "learned"
    assert (
        identity_of(lowered, planned["qkv_proj"]["predictor"])
        == "h100/vllm-0.24.0/fake_gemm/cuda_graph/gemm/bf16"
    )
    assert planned["qkv_proj"]["predictor"] == planned["o_proj"]["predictor"]
    attention = planned["attention"]
    assert "/decode_attention/" in identity_of(lowered, attention["predictors"]["decode"])
    assert "/prefill_attention/" in identity_of(lowered, attention["predictors"]["prefill"])
    assert attention["predictors"]["skew"] is None
    assert attention["predictors"]["mixed"] is None
    assert attention["mixed_decode_factor"] == 1 + 0.5 * (attention["heads"] / attention["kv_heads"] - 1)
    assert "/all_reduce/" in identity_of(lowered, planned["all_reduce.attention"]["predictor"])
    assert len(lowered.predictors) == len({id(each) for each in lowered.predictors}) == 10
    assert lowered.warnings == ()


def test_times_are_those_of_the_predictors(pack: Path) -> None:
    bound = {
        each.operator: each
        for each in frontier.explain({**SCENARIO, "engine": {"step_time": "roofline"}}).decode.operators
    }
    step = frontier.explain(scenario(pack)).decode
    for each in step.operators:
        launch = 2e-6 * each.count
        expected = 1.5 * (bound[each.operator].bound_s - launch + 1e-6 * each.count)
        assert each.seconds == pytest.approx(expected), each.operator
        assert each.provenance == "interpolated"
        assert each.predictors
    assert step.shares["interpolated"] == pytest.approx(1.0)


def test_calibration_scales_its_operator_alone(pack: Path) -> None:
    plain = {each.operator: each.seconds for each in frontier.explain(scenario(pack)).decode.operators}
    scaled = frontier.explain(scenario(pack, calibration={"gemm": 1.25})).decode.operators
    gemms = {each.operator for each in scaled if "/gemm/" in each.predictors[0]}
    assert {"qkv_proj", "lm_head"} <= gemms
    for each in scaled:
        factor = 1.25 if each.operator in gemms else 1.0
        assert each.seconds == pytest.approx(factor * plain[each.operator])


def test_a_calibration_without_a_predictor_is_refused(pack: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"{AT}.calibration.fused_moe: was 2, has no effect.*decode_attention"
    ):
        lower(scenario(pack, calibration={"fused_moe": 2}))


def test_predictors_are_read_once_and_shared(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lower(scenario(pack))
    monkeypatch.setattr(loaded, "open_pack", lambda _: pytest.fail("the pack was read again"))
    second = lower(scenario(pack).with_({"seed": 5}))
    assert all(one is other for one, other in zip(first.predictors, second.predictors, strict=True))
    assert lower(scenario(pack)).plan_json == first.plan_json


def test_a_pack_that_changed_is_read_again(pack: Path) -> None:
    before = lower(scenario(pack))
    fake_packs.write(pack, fake_packs.dense_model(factor=3.0))
    os.utime(pack, ns=(1, 1))
    after = lower(scenario(pack))
    assert before.attached is not None
    assert after.attached is not None
    assert [used["id"] for used in before.attached.identities] == [
        used["id"] for used in after.attached.identities
    ]
    pairs = zip(before.attached.identities, after.attached.identities, strict=True)
    assert all(one["sha256"] != other["sha256"] for one, other in pairs)


def test_the_hash_covers_what_the_manifest_says(tmp_path: Path) -> None:
    one = opened(fake_packs.write(tmp_path / "a", [fake_packs.tree("gemm", 1.5)]))
    other = opened(
        fake_packs.write(tmp_path / "b", [fake_packs.tree("gemm", 1.5, residual_quantiles=[[0.5, 0.1]])])
    )
    assert one.infos[0].sha256 == other.infos[0].sha256
    assert one.identity(0)["sha256"] != other.identity(0)["sha256"]


def test_a_roofline_needs_no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "packs_for", lambda *_: pytest.fail("packs were looked for"))
    lowered = lower(frontier.Scenario.from_dict({**SCENARIO, "engine": {"step_time": "roofline"}}))
    assert (lowered.step_time, lowered.predictors, lowered.warnings) == ("roofline", [], ())


def test_without_a_pack_results_say_that_all_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "shipped_pack", lambda _: None)
    result = frontier.simulate(SCENARIO)
    assert result.step_time == "roofline"
    assert result.trust.shares["unmeasured"] == 1.0
    (warning,) = [warning for warning in result.summary().warnings if "pack" in warning]
    assert (
        warning
        == "no pack of predictors comes with frontier for h100: all step times are bounds, as with a roofline"
    )
    with pytest.raises(
        ConfigError, match=f"{AT}: has settings, but no pack comes with frontier for h100; name one"
    ):
        frontier.simulate({**SCENARIO, "engine": {"step_time": {"learned": {"backend": "vllm"}}}})


def test_shipped_packs_are_found_by_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_packs.write(tmp_path / "x", fake_packs.dense_model())
    asked: list[str] = []
    monkeypatch.setattr(
        chooser, "shipped_pack", lambda name: asked.append(name) or (path if name == "h100" else None)
    )
    assert frontier.simulate(SCENARIO).step_time == "learned"
    assert asked == ["h100", "generic"]


def test_pooled_predictors_are_unmeasured(tmp_path: Path) -> None:
    pack = fake_packs.write(tmp_path / "x", fake_packs.dense_model(backend="generic"), gpu="generic")
    lowered = lower(scenario(pack))
    assert operators(lowered)["qkv_proj"]["predictor"]["unmeasured"] is True
    result = frontier.simulate(scenario(pack))
    assert result.step_time == "learned"
    assert result.trust.shares["unmeasured"] == pytest.approx(1.0)
    assert any("100% of GPU time is unmeasured" in warning for warning in result.summary().warnings)
    assert lowered.attached is not None
    assert "gemm: not measured on h100, predicted from other GPUs" in lowered.attached.notes


def test_packs_of_other_gpus_are_refused(tmp_path: Path) -> None:
    pack = fake_packs.write(tmp_path / "mine", fake_packs.dense_model(), gpu="h200")
    with pytest.raises(ConfigError, match=f"{AT}.packs.0: is a pack of h200, must be of h100 or generic"):
        lower(scenario(pack))


def test_generic_packs_stand_in_for_what_others_lack(tmp_path: Path) -> None:
    own = fake_packs.write(tmp_path / "own", [fake_packs.tree("gemm", 1.5)])
    pooled = fake_packs.write(tmp_path / "pooled", fake_packs.dense_model(backend="generic"), gpu="generic")
    shares = frontier.simulate(scenario(own, pooled)).trust.shares
    assert 0 < shares["unmeasured"] < 1
    assert shares["interpolated"] + shares["unmeasured"] == pytest.approx(1.0)


def test_operators_without_predictors_are_noted(tmp_path: Path) -> None:
    lowered = lower(scenario(fake_packs.write(tmp_path / "p", [fake_packs.tree("gemm", 1.5)])))
    assert lowered.attached is not None
    origin, note = lowered.attached.notes
    assert origin == "predictors of p: vllm 0.24.0 for gemm"
    assert note.startswith("no predictor, priced by their bound: embedding, ")
    assert operators(lowered)["attention"]["mixed_decode_factor"] is None


def test_mixed_attention_of_packing_kernels_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    pack = fake_packs.write(tmp_path / "p", [fake_packs.tree("decode_attention", 1.5, detail={})])
    assert operators(lower(scenario(pack)))["attention"]["mixed_decode_factor"] == 1.0


def test_no_predictor_that_suits_is_said(tmp_path: Path) -> None:
    pack = fake_packs.write(tmp_path / "moe", [fake_packs.tree("fused_moe", 1.5)])
    lowered = lower(scenario(pack))
    assert lowered.step_time == "roofline"
    assert lowered.warnings[-1].startswith(
        "no predictor of moe suits an operator of the model: all step times"
    )


def test_damaged_packs_are_named(pack: Path) -> None:
    content = bytearray(pack.read_bytes())
    content[-3] ^= 1
    pack.write_bytes(content)
    with pytest.raises(PackError, match=r"h100\.safetensors"):
        lower(scenario(pack))
    pack.write_bytes(b"nothing")
    with pytest.raises(PackError, match=r"h100\.safetensors"):
        lower(scenario(pack))


RANKED = [
    fake_packs.tree("gemm", 2.0, backend="sglang", version="0.5.14"),
    fake_packs.tree("gemm", 3.0, version="0.24.0"),
    fake_packs.tree("gemm", 4.0, version="0.9.1"),
    fake_packs.tree("gemm", 5.0, version="0.24.0rc1"),
    fake_packs.tree("gemm", 6.0, version="0.25.0", measurement="event"),
]


@pytest.mark.parametrize(
    ("learned", "found"),
    [
        ({}, "vllm-0.24.0/"),
        ({"backend": "sglang"}, "sglang-0.5.14/"),
        ({"version": "0.9"}, "vllm-0.9.1/"),
        ({"version": "0.24.0rc1"}, "vllm-0.24.0rc1/"),
        ({"version": "0.25"}, "vllm-0.24.0/"),  # that of 0.25 was timed with its launch
        ({"backend": "sglang", "version": "0.5"}, "sglang-0.5.14/"),
    ],
)
def test_backend_and_version_choose(tmp_path: Path, learned: dict[str, Any], found: str) -> None:
    lowered = lower(scenario(fake_packs.write(tmp_path / "p", RANKED), **learned))
    assert found in identity_of(lowered, operators(lowered)["qkv_proj"]["predictor"])


def test_a_backend_that_no_pack_has_is_refused(tmp_path: Path) -> None:
    pack = fake_packs.write(tmp_path / "p", RANKED)
    message = rf"{AT}.backend: was 'trtllm', of which no pack at hand .* \(allowed: auto, vllm, sglang\)"
    with pytest.raises(ConfigError, match=message):
        lower(scenario(pack, backend="trtllm"))


def test_what_stands_in_for_what_was_asked_is_noted(tmp_path: Path) -> None:
    lowered = lower(scenario(fake_packs.write(tmp_path / "p", RANKED), version="0.23"))
    assert lowered.attached is not None
    assert "gemm: measured with vllm 0.9.1, asked 0.23" in lowered.attached.notes
    lowered = lower(scenario(fake_packs.write(tmp_path / "sglang", RANKED[:1])))
    assert lowered.attached is not None
    assert "gemm: kernels of sglang 0.5.14 stand in for vllm's" in lowered.attached.notes


def test_predictors_of_unequal_lengths_go_beside_those_that_have_not_seen_any(tmp_path: Path) -> None:
    skew = fake_packs.tree("decode_skew", 1.1)
    for name, detail, expected in (("a", {}, True), ("b", {"knows_unequal_lengths": 1}, False)):
        decode = fake_packs.tree("decode_attention", 1.5, detail={"mixed_per_head": 0.5, **detail})
        lowered = lower(scenario(fake_packs.write(tmp_path / name, [decode, skew])))
        assert (operators(lowered)["attention"]["predictors"]["skew"] is not None) == expected
        assert len(lowered.predictors) == 1 + expected
    alone = lower(scenario(fake_packs.write(tmp_path / "c", [skew])))
    assert alone.predictors == []


def test_packs_named_first_are_preferred(tmp_path: Path) -> None:
    mine = fake_packs.write(tmp_path / "mine", [fake_packs.tree("gemm", 9.0, kernel="mine")])
    other = fake_packs.write(tmp_path / "other", fake_packs.dense_model())
    for packs, kernel in (((mine, other), "/mine/"), ((other, mine), "/fake_gemm/")):
        lowered = lower(scenario(*packs))
        assert kernel in identity_of(lowered, operators(lowered)["qkv_proj"]["predictor"])
        assert len(lowered.predictors) == 9


def test_only_what_suits_is_chosen(tmp_path: Path) -> None:
    fakes = [
        fake_packs.tree("gemm", 2.0, dtype="fp8"),
        fake_packs.tree("gemm", 2.0, detail={"batched": "mla heads"}),
        fake_packs.tree("decode_attention", 2.0, detail={"kv_cache_dtype": "fp8"}),
        fake_packs.tree("decode_attention", 2.0, detail={"mla": "absorbed"}),
        fake_packs.tree("decode_attention", 2.0, kernel="x.large_heads"),
        fake_packs.table("all_reduce", 1e-4, detail={"ranks": 8}),
    ]
    pack = fake_packs.write(tmp_path / "p", fakes)
    assert lower(scenario(pack, engine={"tensor_parallel_size": 2})).predictors == []
    eight = lower(scenario(pack, engine={"kv_cache_dtype": "fp8"}))
    assert identity_of(eight, operators(eight)["attention"]["predictors"]["decode"]).endswith(
        " kv_cache_dtype=fp8"
    )


def test_plans_hold_nothing_of_a_machine(pack: Path) -> None:
    lowered = lower(scenario(pack))
    assert str(pack.parent) not in lowered.plan_json
    assert json.loads(lowered.plan_json) == lowered.plan


H100 = """\
name: h100
num_sms: {sms}
memory: 81090MiB
memory_bandwidth: 3.35TB/s
peak: {{fp32: 67TFLOPS, fp16: 989TFLOPS, bf16: 989TFLOPS, fp8: 1979TFLOPS}}
nvlink_bandwidth: {nvlink}
pcie_bandwidth: 64GB/s
gpus_per_node: 8
compute_capability: "9.0"
"""


def on_a_file(folder: Path, *, sms: int = 132, nvlink: str = "450GB/s", **engine: Any) -> frontier.Scenario:
    path = folder / "gpu.yaml"
    path.write_text(H100.format(sms=sms, nvlink=nvlink))
    settings = {**SCENARIO["engine"], **engine}
    return frontier.Scenario.from_dict({**SCENARIO, "hardware": {"gpu": str(path)}, "engine": settings})


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = {
        "h100": fake_packs.write(tmp_path / "h100", fake_packs.dense_model()),
        "generic": fake_packs.write(
            tmp_path / "generic", fake_packs.dense_model(backend="generic"), gpu="generic"
        ),
    }
    monkeypatch.setattr(chooser, "shipped_pack", packs.get)


@pytest.mark.usefixtures("shipped")
def test_a_gpu_like_the_preset_takes_its_measurements(tmp_path: Path) -> None:
    lowered = lower(on_a_file(tmp_path))
    assert lowered.warnings == ()
    assert identity_of(lowered, operators(lowered)["qkv_proj"]["predictor"]).startswith("h100/")


@pytest.mark.usefixtures("shipped")
def test_a_gpu_that_borrows_a_name_takes_pooled_predictors_alone(tmp_path: Path) -> None:
    lowered = lower(on_a_file(tmp_path, sms=66))
    assert lowered.attached is not None
    assert {used["id"].split("/")[0] for used in lowered.attached.identities} == {"generic"}
    assert operators(lowered)["qkv_proj"]["predictor"]["unmeasured"] is True
    [warning] = lowered.warnings
    assert warning.startswith(
        "h100 differs from the preset of that name in num_sms: nothing measured on h100"
    )


def test_packs_that_are_named_stay_with_a_warning(tmp_path: Path, pack: Path) -> None:
    step_time = {"learned": {"packs": [str(pack)]}}
    lowered = lower(on_a_file(tmp_path, sms=66, step_time=step_time))
    assert identity_of(lowered, operators(lowered)["qkv_proj"]["predictor"]).startswith("h100/")
    [warning] = lowered.warnings
    assert warning.endswith("in num_sms: times of the packs given may not be its own")


@pytest.mark.usefixtures("shipped")
def test_other_links_leave_collectives_without_predictors(tmp_path: Path) -> None:
    lowered = lower(on_a_file(tmp_path, nvlink="200GB/s", tensor_parallel_size=2))
    planned = operators(lowered)
    assert identity_of(lowered, planned["qkv_proj"]["predictor"]).startswith("h100/")
    assert identity_of(lowered, planned["all_reduce.attention"]["predictor"]).startswith("generic/")
    assert "nvlink_bandwidth_bytes_per_s" in lowered.warnings[0]
    assert lower(on_a_file(tmp_path, tensor_parallel_size=2)).warnings == ()


def test_substitutions_reach_the_results(tmp_path: Path) -> None:
    fakes = [
        fake_packs.tree("gemm", 1.5, backend="sglang", version="0.5.14"),
        fake_packs.tree("prefill_attention", 1.5, backend="sglang", version="0.5.14"),
        fake_packs.tree("decode_attention", 1.5, measurement="event"),
        fake_packs.tree("rms_norm", 1.5, backend="vidur", version="1"),
    ]
    result = frontier.simulate(scenario(fake_packs.write(tmp_path / "p", fakes)))
    warnings = result.summary().warnings
    assert "kernels of sglang 0.5.14 stand in for vllm's: gemm, prefill_attention" in warnings
    assert "timed with its launch, which a graph hides: decode_attention" in warnings
    assert not any("vidur" in warning for warning in warnings)
    again = frontier.Result.load(result.save(tmp_path / "run"))
    assert "rms_norm: kernels of vidur 1 stand in for vllm's" in again.facts.notes
    assert again.facts.notes == result.facts.notes


def _attention_pack(path: Path, prefill: str | None, decode: str | None, mixed: str | None = None) -> Path:
    families = {"prefill_attention": prefill, "decode_attention": decode, "mixed_attention": mixed}
    fakes = [
        fake_packs.tree(family, 1.5, detail={"includes": what} if what else {})
        for family, what in families.items()
        if family != "mixed_attention" or what is not None
    ]
    return fake_packs.write(path, [*fakes, fake_packs.tree("kv_write", 2.0), fake_packs.tree("rope", 2.0)])


def test_what_attention_includes_is_not_priced_twice(tmp_path: Path) -> None:
    both = {"kv_cache_write", "rotary_embedding"}
    some = "a part of some attention as it was measured, not of all: priced apart, in part twice"
    for number, (includes, left, notes) in enumerate(
        (
            ((None, None), both, []),
            (("kv_write", "kv_write"), {"rotary_embedding"}, ["kv_write: a part of attention as it was"]),
            (("rope, kv_write", "rope, kv_write"), set(), ["kv_write: a part of", "rope: a part of"]),
            (("kv_write", None), both, [f"kv_write: {some}"]),
            (
                ("rope, kv_write", "rope"),
                {"kv_cache_write"},
                [f"kv_write: {some}", "rope: a part of attention"],
            ),
            ((None, None, "kv_write"), both, [f"kv_write: {some}"]),
        )
    ):
        lowered = lower(scenario(_attention_pack(tmp_path / str(number), *includes)))
        assert both & set(operators(lowered)) == left, includes
        assert lowered.attached is not None
        told = [note for note in lowered.attached.notes if " part of " in note]
        assert len(told) == len(notes), includes
        assert all(note.startswith(start) for note, start in zip(told, notes, strict=True)), told
    with pytest.raises(ConfigError, match=f"{AT}.calibration.kv_write: was 2, has no effect"):
        lower(scenario(_attention_pack(tmp_path / "c", "kv_write", "kv_write"), calibration={"kv_write": 2}))


def test_explanations_hold_what_is_left_of_the_plan(tmp_path: Path) -> None:
    found = frontier.explain(scenario(_attention_pack(tmp_path / "p", "kv_write", "kv_write")))
    names = [each.operator for each in found.decode.operators]
    assert "attention" in names
    assert "kv_cache_write" not in names
    assert any(note.startswith("kv_write: a part of attention") for note in found.notes)


def test_transferred_skew_is_unmeasured(tmp_path: Path) -> None:
    decode = fake_packs.tree("decode_attention", 1.5)
    for name, detail, unmeasured in (
        ("own", {}, False),
        ("other", {"transferred_from": ["rtx-4090"]}, True),
        ("among", {"transferred_from": ["h100", "rtx-4090"]}, False),
    ):
        skew = fake_packs.tree("decode_skew", 1.1, detail=detail)
        lowered = lower(scenario(fake_packs.write(tmp_path / name, [decode, skew])))
        references = operators(lowered)["attention"]["predictors"]
        assert (references["skew"]["unmeasured"], references["decode"]["unmeasured"]) == (unmeasured, False)


def test_exchanges_take_the_kernels_of_their_backend(tmp_path: Path) -> None:
    fakes = [
        fake_packs.tree(f"moe_{phase}", 1.5, kernel=kernel, measurement="kernel", rows=rows)
        for phase in ("dispatch", "combine")
        for kernel, rows in (("deepep_ll", 10), ("deepep_ht", 1000))
    ]
    pack = opened(fake_packs.write(tmp_path / "p", fakes))
    choose = chooser.Chooser([pack], "h100", backend="vllm", version=None)
    for backend, kernel in (("deepep_low_latency", "deepep_ll"), ("deepep_high_throughput", "deepep_ht")):
        layout = Layout(1, 1, 8, enable_expert_parallel=True, all2all_backend=backend)
        program = operator_program(load_model("deepseek-v3"), layout=layout)
        attached = attach_chosen([program], choose, {})
        assert len(attached.identities) == 2
        assert all(f"/{kernel}/" in used["id"] for used in attached.identities)


def test_attention_with_its_launch_is_the_last_resort(tmp_path: Path) -> None:
    launched = fake_packs.tree("prefill_attention", 9.0, measurement="event")
    own = fake_packs.write(tmp_path / "own", [launched])
    pooled = fake_packs.write(
        tmp_path / "pooled",
        [fake_packs.tree("prefill_attention", 2.0, backend="generic", version="1")],
        gpu="generic",
    )
    lowered = lower(scenario(own, pooled))
    chosen = operators(lowered)["attention"]["predictors"]["prefill"]
    assert chosen["unmeasured"]
    assert identity_of(lowered, chosen).startswith("generic/")
    alone = lower(scenario(own))
    assert "/event/" in identity_of(alone, operators(alone)["attention"]["predictors"]["prefill"])
