"""Identities, canonical columns, repeats and splits, on rows made here."""

import numpy as np
import pytest

from frontier.errors import ConfigError
from frontier.training import splits
from frontier.training.identity import Identity
from frontier.training.measurements import Measurements, Source, concat

GEMM = Identity("h100", "vllm", "0.24.0", "linear", "cuda_graph", "gemm", "bf16")
DECODE = Identity(
    "h100", "vllm", "0.24.0", "fa3", "cuda_graph", "decode_attention", "bf16", {"kv_cache_dtype": "bf16"}
)
MIXED = Identity("h100", "vllm", "0.24.0", "fa3", "cuda_graph", "mixed_attention", "bf16")


def gemm(rows, seconds, *, k=4096, n=4096, model="site") -> Measurements:
    columns = {"rows": rows, "k": k, "n": n, "batch": 1, "weight_bytes": 2, "activation_bytes": 2}
    return Measurements.of(GEMM, columns, seconds, model)


def attention(identity, batches, seconds) -> Measurements:
    """`batches`: for each row its groups as (count, query, context)."""
    flat = [group for batch in batches for group in batch]
    columns = {
        "heads": 32,
        "kv_heads": 8,
        "qk_dim": 128,
        "v_dim": 128,
        "kv_bytes_per_token": 4096,
        "activation_bytes": 2,
        "window": 0,
        "offsets": np.cumsum([0, *map(len, batches)]),
        **{name: [group[i] for group in flat] for i, name in enumerate(("count", "query", "context"))},
    }
    return Measurements.of(identity, columns, seconds, "h32")


class TestIdentity:
    def test_detail_is_sorted_and_hashable_whatever_it_came_as(self) -> None:
        one = Identity("h100", "b", "1", "k", "event", "gemm", "fp8", {"b": 2, "a": 1})
        two = Identity("h100", "b", "1", "k", "event", "gemm", "fp8", (("a", 1), ("b", 2)))
        assert one == two
        assert hash(one) == hash(two)
        assert one.facts == {"a": 1, "b": 2}
        assert str(one) == "h100/b-1/k/event/gemm/fp8 a=1 b=2"

    @pytest.mark.parametrize(
        ("field", "value"), [("measurement", "wall"), ("operator", "conv"), ("dtype", "bfloat16")]
    )
    def test_unknown_words_are_refused_by_name(self, field: str, value: str) -> None:
        given = {"measurement": "event", "operator": "gemm", "dtype": "bf16", field: value}
        with pytest.raises(ConfigError, match=f"identity.{field}.*{value}"):
            Identity("h100", "b", "1", "k", **given)


class TestMeasurements:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": [1.0, np.nan]}, "finite"),
            ({"k": [1.0, 0.0]}, "row 1 was 0.0"),
            ({"k": [1.0, 2.0, 3.0]}, r"shape \(3,\)"),
            ({"extra": 1}, "extra"),
        ],
    )
    def test_bad_columns_are_refused(self, change: dict, message: str) -> None:
        columns = {
            "rows": [1, 2],
            "k": 8,
            "n": 8,
            "batch": 1,
            "weight_bytes": 2,
            "activation_bytes": 2,
            **change,
        }
        with pytest.raises(ConfigError, match=message):
            Measurements.of(GEMM, columns, [1e-6, 1e-6], "m")

    @pytest.mark.parametrize("seconds", [0.0, -1e-6, np.inf, np.nan])
    def test_times_must_be_finite_and_positive(self, seconds: float) -> None:
        with pytest.raises(ConfigError, match="seconds"):
            gemm([1, 2], [1e-6, seconds])

    def test_context_counts_the_new_tokens(self) -> None:
        with pytest.raises(ConfigError, match="context"):
            attention(DECODE, [[(1, 4, 3)]], [1e-5])

    def test_equal_inputs_have_equal_keys_and_others_do_not(self) -> None:
        found = gemm([1, 2, 1, 3], [1e-6, 2e-6, 3e-6, 4e-6])
        assert found.key[0] == found.key[2]
        assert len(set(found.key)) == 3

    def test_the_order_of_requests_in_a_batch_does_not_matter(self) -> None:
        batches = [[(1, 1, 9), (2, 1, 5)], [(2, 1, 5), (1, 1, 9)], [(1, 1, 5), (2, 1, 9)]]
        key = attention(MIXED, batches, [1e-5] * 3).key
        assert key[0] == key[1] != key[2]

    def test_take_keeps_groups_with_their_rows_and_counts_the_rest(self) -> None:
        found = attention(
            MIXED, [[(1, 1, 9), (2, 1, 5)], [(3, 1, 7)], [(4, 8, 8), (1, 1, 2)]], [1e-5, 2e-5, 3e-5]
        )
        kept = found.take(np.array([2, 0]), why="odd")
        assert kept.columns["offsets"].tolist() == [0, 2, 4]
        assert kept.columns["count"].tolist() == [4, 1, 1, 2]
        assert kept.columns["context"].tolist() == [8, 2, 9, 5]
        assert kept.key.tolist() == found.key[[2, 0]].tolist()
        assert kept.dropped == {"odd": 1}

    def test_concat_is_the_inverse_of_taking_apart(self) -> None:
        found = attention(MIXED, [[(1, 1, 9), (2, 1, 5)], [(3, 1, 7)], [(4, 8, 8)]], [1e-5, 2e-5, 3e-5])
        again = concat([found.take(np.array([0])), found.take(np.array([1, 2]))])
        assert all((again.columns[name] == values).all() for name, values in found.columns.items())
        assert (again.key == found.key).all()

    def test_concat_refuses_other_identities_and_adds_up_the_rest(self) -> None:
        source = Source("s", "MIT", "f", "0", "1")
        part = Measurements.of(
            GEMM, gemm([1], [1e-6]).columns, [1e-6], "m", dropped={"x": 2}, sources=[source]
        )
        whole = concat([part, part])
        assert (whole.dropped, whole.sources) == ({"x": 4}, (source,))
        with pytest.raises(ConfigError, match="one identity"):
            concat([part, attention(DECODE, [[(1, 1, 9)]], [1e-5])])

    def test_repeat_floor_measures_repeats_against_their_median(self) -> None:
        floor = gemm([1, 1, 1, 2, 2, 3], [1.0, 1.05, 1.2, 2.0, 2.2, 9.0]).repeat_floor()
        assert (floor.groups, floor.rows) == (2, 5)
        away = np.array([0.05 / 1.05, 0, 0.15 / 1.05, 0.1 / 2.1, 0.1 / 2.1])
        assert floor.median == pytest.approx(np.median(away))
        assert floor.share_6 == pytest.approx(4 / 5)
        assert floor.share_10 == pytest.approx(4 / 5)

    def test_repeat_floor_without_repeats_is_not_a_number(self) -> None:
        floor = gemm([1, 2], [1.0, 1.0]).repeat_floor()
        assert floor.rows == 0
        assert np.isnan(floor.median)


class TestSplits:
    def many(self) -> Measurements:
        rows = np.tile(np.arange(1, 101), 3)
        n = np.repeat([1024, 2048, 4096], 100)
        return gemm(
            np.repeat(rows, 2), np.full(600, 1e-6), n=np.repeat(n, 2), model=np.repeat(n, 2).astype(str)
        )

    def check(self, split: splits.Split, total: int) -> None:
        assert sorted([*split.train, *split.test]) == list(range(total))
        assert (np.diff(split.train) > 0).all()
        assert (np.diff(split.test) > 0).all()

    def test_repeats_stay_on_one_side(self) -> None:
        found = self.many()
        split = splits.random_by_key(found, seed=1)
        self.check(split, 600)
        assert not set(found.key[split.train]) & set(found.key[split.test])
        assert len(split.test) == 120

    def test_the_seed_decides_and_nothing_else(self) -> None:
        found = self.many()
        one, again, other = (splits.random_by_key(found, seed) for seed in (1, 1, 2))
        assert (one.test == again.test).all()
        assert (one.test.tolist()) != other.test.tolist()

    def test_whole_models_are_held_out(self) -> None:
        found = self.many()
        split = splits.held_out_models(found, seed=3, share=0.3)
        self.check(split, 600)
        assert len(set(found.model[split.test])) == 1
        assert not set(found.model[split.train]) & set(found.model[split.test])

    def test_one_model_cannot_be_held_out(self) -> None:
        with pytest.raises(ConfigError, match="two models"):
            splits.held_out_models(gemm([1, 2], [1e-6, 1e-6]), seed=1)

    @pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
    def test_a_share_lies_between_none_and_all(self, share: float) -> None:
        with pytest.raises(ConfigError, match="share"):
            splits.random_by_key(self.many(), 1, share)

    def test_the_largest_batches_are_extrapolated_to(self) -> None:
        split = splits.extrapolation(gemm([1, 2, 4, 8, 16], [1e-6] * 5))["rows"]
        assert split.test.tolist() == [3, 4]

    def test_attention_has_two_axes(self) -> None:
        batches = [[(1, 1, 100)], [(64, 1, 10)], [(16, 1, 26), (1, 1, 25)]]
        found = splits.extrapolation(attention(DECODE, batches, [1e-5] * 3))
        assert found["batch"].test.tolist() == [1, 2]
        assert found["context"].test.tolist() == [0, 2]

    def test_an_axis_without_two_sides_is_left_out(self) -> None:
        assert splits.extrapolation(gemm([4, 4], [1e-6, 2e-6])) == {}
