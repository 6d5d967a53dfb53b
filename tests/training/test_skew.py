"""Unequal lengths and mixed batches, on made-up sweeps whose law is known."""

from dataclasses import replace

import numpy as np
import pytest

from frontier.errors import ConfigError
from frontier.training.identity import Identity
from frontier.training.measurements import Measurements, concat

pytest.importorskip("xgboost", reason="needs the extra `train`")

from frontier.training import transfer
from frontier.training.skew import skew_rows
from frontier.training.sources.llmservingsim import AS_IT_IS, UNIFORM_MEAN
from frontier.training.transfer import reads_for_each_head
from frontier.training.unequal import held_out

PER_HEAD, SKEW = 0.25, 0.2
GPUS = {"rtx-4090": 1e12, "rtx-pro-6000": 1.8e12}


def decode_s(gpu, count, context, kv_heads=8):
    return 5e-6 + count * context * kv_heads * 512.0 / GPUS[gpu]


def prefill_s(tokens, heads):
    return 8e-6 + tokens * tokens * heads * 256.0 / 150e12


def batches(gpu, operator, groups, seconds, heads, **marks):
    """Rows of `groups`: for each row a list of (count, query, context)."""
    identity = Identity(gpu, "vllm", "0.19.0", "vllm_flash_attn", "kernel", operator, "bf16")
    flat = np.array([group for row in groups for group in row])
    columns = {
        "heads": np.asarray(heads, float),
        "kv_heads": 8,
        "qk_dim": 128,
        "v_dim": 128,
        "kv_bytes_per_token": 4096,
        "activation_bytes": 2,
        "window": 0,
        "offsets": np.concatenate(([0], np.cumsum([len(row) for row in groups]))),
        "count": flat[:, 0],
        "query": flat[:, 1],
        "context": flat[:, 2],
    }
    sites = [f"h{head}" for head in np.asarray(heads)]
    return Measurements.of(identity, columns, seconds, sites, marks=marks)


def sweep(gpu):
    """Yield all four tables of one GPU."""
    points = [
        (n, c, h) for h in (16, 32, 64) for n in (1, 2, 4, 8, 16, 32, 64) for c in (256, 1024, 4096, 8192)
    ]
    counts, contexts, heads = zip(*points, strict=True)
    times = [decode_s(gpu, n, c) for n, c in zip(counts, contexts, strict=True)]
    yield batches(gpu, "decode_attention", [[(n, 1, c)] for n, c, _ in points], times, heads)

    prompts = [(t, h) for h in (16, 32, 64) for t in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)]
    times = [prefill_s(t, h) for t, h in prompts]
    yield batches(gpu, "prefill_attention", [[(1, t, t)] for t, _ in prompts], times, [h for _, h in prompts])

    skewed = [(n, c, h, spread) for n, c, h in points if n > 1 for spread in (1.5, 2.0)]
    groups, times, role = [], [], []
    for n, c, _, spread in skewed:
        base = decode_s(gpu, n, c)
        few = n // 2
        groups += [[(n, 1, c)], [(few, 1, int(c * spread)), (n - few, 1, max(1, int(c * (2 - spread))))]]
        times += [base, base * (1 + SKEW * (spread - 1))]
        role += [UNIFORM_MEAN, AS_IT_IS]
    marks = {"skew_role": np.array(role), "pair": np.repeat(np.arange(len(skewed)), 2)}
    yield batches(gpu, "decode_skew", groups, times, np.repeat([h for _, _, h, _ in skewed], 2), **marks)

    both = [(t, n, c, h) for t, h in prompts for n, c, head in points if head == h][::7]
    groups = [[(1, t, t), (n, 1, c)] for t, n, c, _ in both]
    times = [prefill_s(t, h) + decode_s(gpu, n, c) * (1 + PER_HEAD * (h / 8 - 1)) for t, n, c, h in both]
    yield batches(gpu, "mixed_attention", groups, times, [h for *_, h in both])


@pytest.fixture(scope="module")
def learned():
    return transfer.learn(table for gpu in GPUS for table in sweep(gpu))


def test_what_one_gpu_teaches_helps_the_other(learned):
    splits = learned.skew.splits
    for gpu in GPUS:
        assert splits[f"{gpu} held out"]["median"] < 0.8 * splits[f"{gpu} uncorrected"]["median"]
    assert learned.skew.entry["detail"]["transferred_from"] == sorted(GPUS)
    assert len(learned.skew.entry["features"]) <= 4


def test_residuals_are_of_the_factor_alone():
    """The decodes of one GPU are twice as slow as any predictor of the other's says; the factor is not."""

    def slowed(table):
        slow = table.identity.gpu == "rtx-4090" and table.identity.operator == "decode_attention"
        return replace(table, seconds=table.seconds * 2) if slow else table

    found = transfer.learn(slowed(table) for gpu in GPUS for table in sweep(gpu))
    quantiles = dict(found.skew.entry["residual_quantiles"])
    assert max(map(abs, quantiles.values())) < np.log(1 + SKEW)


def test_a_factor_is_of_the_times_measured_at_one_point():
    (table,) = (each for each in sweep("rtx-4090") if each.identity.operator == "decode_skew")
    whole = skew_rows(table)
    assert set(np.round(whole.target, 9)) == {round(float(np.log(1 + SKEW * s)), 9) for s in (0.5, 1.0)}
    without = table.take(~((table.marks["skew_role"] == UNIFORM_MEAN) & (table.marks["pair"] < 10)))
    assert len(skew_rows(without).target) == len(whole.target) - 10


def test_equal_skewed_batches_lie_on_one_side():
    (table,) = (each for each in sweep("rtx-4090") if each.identity.operator == "decode_skew")
    again = table.marked("pair", table.marks["pair"] + 1_000)
    both = concat([table, again])
    tested = held_out(both)
    skewed = both.marks["skew_role"] == AS_IT_IS
    assert not set(both.key[skewed & tested]) & set(both.key[skewed & ~tested])
    pair = both.marks["pair"]
    assert not set(pair[tested]) & set(pair[~tested])
    assert 0.1 < tested.mean() < 0.3


def test_two_identities_of_one_operator_are_refused():
    tables = list(sweep("rtx-4090"))
    other = replace(tables[0], identity=replace(tables[0].identity, version="0.20.0"))
    with pytest.raises(ConfigError, match=r"need one identity per operator and GPU.*0\.20\.0"):
        transfer.learn([*tables, other])


def test_gpus_with_sweeps_know_unequal_lengths_themselves(learned):
    own = {identity.gpu: trained for identity, trained in learned.own.items()}
    assert set(own) == set(GPUS)
    for trained in own.values():
        assert trained.entry["detail"]["knows_unequal_lengths"] == 1
        assert {"kv_max_ratio", "kv_variation"} <= set(trained.entry["features"])
        assert trained.splits["random"]["median"] < 0.03


def test_the_law_of_mixed_batches_is_found_again(learned):
    for gpu in GPUS:
        share = learned.shares[gpu]
        assert share.per_head == pytest.approx(PER_HEAD, abs=0.04)
        assert share.figures["per head"]["median"] < share.figures["share"]["median"]
        assert learned.crossed[gpu].figures["per head"]["median"] < 0.1


def test_only_kernels_of_the_same_kind_inherit_the_law(learned):
    own = learned.detail("rtx-4090", "vllm_flash_attn")
    assert own["mixed_per_head"] == pytest.approx(PER_HEAD, abs=0.04)
    assert "mixed_from" not in own
    carried = learned.detail("a100-80gb", "vllm_flash_attn_fa2")
    assert carried["mixed_from"] == sorted(GPUS)
    assert carried["mixed_per_head"] > 0
    assumed = learned.detail("h100", "vllm_flash_attn_fa3")
    assert assumed["mixed_per_head"] == 0
    assert "mixed_assumed" in assumed
    for found in (own, carried, assumed):
        assert "mixed_share" not in found


@pytest.mark.parametrize(
    ("kernel", "answer"),
    [
        ("vllm_flash_attn", True),
        ("vllm_flash_attn_fa2", True),
        ("vllm_flash_attn_fa3", False),
        ("vllm_flash_attn_mla", False),
        ("trtllm_mha", False),
    ],
)
def test_kernels_that_read_for_each_head(kernel, answer):
    assert reads_for_each_head(kernel) is answer


def test_without_sweeps_nothing_is_carried_over():
    nothing = transfer.learn([])
    assert nothing.skew is None
    assert nothing.detail("h100", "vllm_flash_attn_fa2") == {}
