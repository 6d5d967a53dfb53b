"""The real operations, on PyTorch's CPU: skipped where PyTorch is not installed."""

import itertools
import json
import math
from dataclasses import replace

import polars as pl
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from frontier.profiler.device import PointRefusedError  # noqa: E402
from frontier.profiler.families import CELLS, Request  # noqa: E402
from frontier.profiler.grid import Grid  # noqa: E402
from frontier.profiler.kernels import BUILDERS, attention, moe  # noqa: E402
from frontier.profiler.kernels.bench import Bench  # noqa: E402
from frontier.profiler.libraries import _small_attention, _small_moe  # noqa: E402
from frontier.profiler.measure import Policy, measure  # noqa: E402
from frontier.profiler.points import ATTENTION, COLUMNS, Point  # noqa: E402
from frontier.profiler.session import profile  # noqa: E402
from frontier.profiler.settings import Settings  # noqa: E402
from frontier.profiler.shapes import AttentionShape, GemmShape, MoeShape, RowShape, Shapes  # noqa: E402
from frontier.profiler.torch_device import TorchCpu, open_device  # noqa: E402

TINY = Shapes(
    gemm=[GemmShape(64, 96, 1), GemmShape(64, 32, 4)],
    attention=[AttentionShape(4, 2, 32, 32, 256.0, 0)],
    moe=[MoeShape(64, 32, 8, 2)],
    rows=[
        RowShape("rms_norm", 512.0, (("hidden", 64), ("residual", 1))),
        RowShape("rms_norm", 256.0, (("hidden", 64), ("residual", 0))),
        RowShape("rope", 768.0, (("heads", 6), ("rotary", 32))),
        RowShape("activation", 192.0, (("width", 32),)),
        RowShape("kv_write", 520.0, (("width", 64),)),
        RowShape("embedding", 264.0, (("hidden", 64), ("vocab", 100))),
        RowShape("quant_fp8", 388.0, (("features", 128),)),
        RowShape("moe_gating", 32.0, (("experts", 8), ("top_k", 2))),
        RowShape("sampler", 4200.0, (("vocab", 100),)),
    ],
)
GRID = Grid(
    gemm_rows=(1, 16),
    query=(4, 16),
    prefix=(0, 20),
    prefill_requests=(1, 3),
    uneven_draws=2,
    batch=(1, 3),
    context=(5, 40),
    skew_batch=(4,),
    short=(6,),
    long=(50,),
    mixed_query=(8,),
    mixed_prefix=(0, 10),
    mixed_batch=(2,),
    mixed_context=(30,),
    moe_rows=(1, 20),
    token_rows=(1, 33),
    sequence_rows=(2,),
    copy_bytes=(4096,),
    launches=(1, 10),
)
BENCH = Bench(torch, "cpu")


@pytest.fixture(scope="module")
def device():
    return open_device("cpu")


@pytest.mark.parametrize("family", list(CELLS))
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_every_operation_runs_on_every_copy(family, dtype):
    if dtype == "fp8" and family not in ("gemm", "elementwise"):
        pytest.skip("not planned in fp8")
    seen = 0
    points = [point for _, point in CELLS[family](Request(TINY, GRID, dtype, 0))]
    # The processor's library compiles a kernel for every size of product: a few will do.
    for point in points[:: 5 if family == "moe" else 1]:
        if family == "copy" and point.detail["direction"] != "within":
            with pytest.raises(PointRefusedError, match="a CPU has no device"):
                BUILDERS[point.operator](BENCH, point, 1)
            continue
        launches = BUILDERS[point.operator](BENCH, point, 3)
        assert len(launches.runs) == 3
        for run in launches.runs:
            run()
        seen += 1
    assert seen > 0


def attend(q, k, v):
    """Return causal attention of one request (query, heads, dim), in 64 bits, the plain way."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(groups, dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    rows, keys = scores.shape[1:]
    later = torch.arange(keys)[None, :] > torch.arange(rows)[:, None] + keys - rows
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("group", [(2, 1, 9), (2, 7, 7), (3, 4, 11)])
def test_dense_attention_is_causal_at_the_end_of_the_context(monkeypatch, group):
    made = []
    normal = BENCH.normal

    def remember(*shape, **more):
        made.append(normal(*shape, **more))
        return made[-1]

    monkeypatch.setattr(BENCH, "normal", remember)
    point = replace(_small_attention(), groups=(group,))
    launches = attention.build_attention(BENCH, point, 1)
    assert launches.kernel == "torch_sdpa"
    found = launches.runs[0]()
    q, k, v = (x.transpose(1, 2) for x in made)
    for request in range(group[0]):
        expected = attend(q[request], k[request], v[request])
        assert torch.allclose(found[request].transpose(0, 1).double(), expected, atol=0.03)


def test_paged_attention_gives_libraries_what_they_expect():
    """A library's function, restated: it must find every request's blocks, lengths and queries."""
    calls = []

    def varlen(q, k, v, **given):
        table, starts, used = (
            given["block_table"],
            given["cu_seqlens_q"].tolist(),
            given["seqused_k"].tolist(),
        )
        calls.append(
            (used, [b - a for a, b in itertools.pairwise(starts)], given["causal"], given["window_size"])
        )
        assert given["max_seqlen_q"] == max(calls[-1][1])
        assert given["max_seqlen_k"] == max(used)
        assert starts[-1] == q.shape[0]
        owned = [table[row, : -(-length // k.shape[1])].tolist() for row, length in enumerate(used)]
        assert sorted(itertools.chain(*owned)) == list(range(k.shape[0]))  # each block has one owner
        out = [
            attend(q[start:end], *(x[table[row].long()].flatten(0, 1)[:length] for x in (k, v)))
            for row, (start, end, length) in enumerate(zip(starts[:-1], starts[1:], used, strict=True))
        ]
        return torch.cat(out)

    point = _small_attention()
    bench = Bench(torch, "cpu", {attention.VLLM: varlen})
    launches = attention.build_attention(bench, point, 2)
    assert launches.kernel == "vllm_flash_attn"
    assert launches.runs[0]().shape == (22, 8, 128)
    assert calls == [([50, 300, 300], [20, 1, 1], True, (-1, -1))]
    windowed = replace(point, columns={**point.columns, "window": 128.0})
    attention.build_attention(bench, windowed, 1).runs[0]()
    assert calls[-1][3] == (127, 0)


def test_attention_that_has_no_kernel_is_refused():
    point = _small_attention()
    with pytest.raises(PointRefusedError, match="sliding window"):
        attention.build_attention(BENCH, replace(point, columns={**point.columns, "window": 8.0}), 1)
    columns = {**point.columns, "kv_bytes_per_token": 512.0}
    with pytest.raises(PointRefusedError, match="another type"):
        attention.build_attention(BENCH, replace(point, columns=columns), 1)


@pytest.mark.parametrize("kernel", ["torch_expert_loop", "torch_grouped_mm"])
def test_experts_compute_what_a_token_by_token_layer_does(monkeypatch, kernel):
    bench = Bench(torch, "cpu", grouped_mm=kernel == "torch_grouped_mm")
    made = []
    normal = bench.normal

    def remember(*shape, **more):
        made.append(normal(*shape, **more))
        return made[-1]

    monkeypatch.setattr(bench, "normal", remember)
    point = _small_moe()
    launches = moe.build_moe(bench, point, 1)
    assert launches.kernel == kernel
    try:
        found = launches.runs[0]()
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this build of PyTorch has no grouped product for CPUs: {error}")
    x, first, second = (tensor.double() for tensor in made)
    expected = torch.zeros_like(x)
    for token, experts in enumerate(moe.routing(len(x), point.expert_loads, 0)):
        for expert in experts:
            gate, up = (first[expert] @ x[token]).chunk(2)
            expected[token] += second[expert] @ (torch.nn.functional.silu(gate) * up) / 2
    assert torch.allclose(found.double(), expected, atol=0.05)
    assert expected.abs().max() > 0.2


def test_values_are_normal_however_many():
    values = BENCH.normal(3 * 2**20 + 5, dtype="bf16").float()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert BENCH.normal(4, 8, dtype="fp8").dtype == torch.float8_e4m3fn
    assert BENCH.normal(2**16, dtype="fp16", scale=0.5).float().std() == pytest.approx(0.5, rel=0.05)


def test_a_product_is_measured(device):
    columns = dict(zip(COLUMNS["gemm"], (64, 64, 64, 1, 2.0, 2.0), strict=True))
    point = Point("gemm", "gemm", "bf16", columns, 2.0 * 64**3, 6.0 * 64**2, 6 * 64**2)
    policy = Policy(repeats=5, repeats_most=7, point_s=60.0, noise=1e9, outlier_share=1.0, copies_most=3)
    measurement = measure(device, point, policy)
    assert measurement.kernel == "torch_linear"
    assert measurement.copies == 3
    assert 5 <= measurement.rounds + measurement.outliers <= 7
    assert measurement.warmup >= 6
    assert measurement.seconds > 0
    assert measurement.clock_mhz is None


def test_failures_of_pytorch_are_refusals(device):
    columns = dict(zip(ATTENTION, (3.0, 2.0, 8.0, 8.0, 64.0, 2.0, 0.0), strict=True))  # 3 heads over 2
    point = Point("decode", "decode_attention", "bf16", columns, 0.0, 0.0, 64, ((1, 1, 4),))
    with pytest.raises(PointRefusedError, match="Error: "):
        device.open(point, 1)


def test_a_whole_profile_on_the_processor(tmp_path, device):
    settings = Settings(
        gpu="cpu",
        models=("qwen3-0.6b",),
        ranks=(1,),
        launch_s=0.02,
        policy=Policy(repeats=3, repeats_most=5, warmup_most=6, point_s=0.05, noise=100.0, cache_factor=0.0),
        grid=replace(GRID, targets=dict.fromkeys(Grid().targets, 3), gemm_rows=(1, 4)),
    )
    manifest = profile(device, tmp_path / "p", settings, budget_s=60)
    assert manifest["device"] == "cpu"
    assert manifest["measurement"] == "event"
    assert manifest["versions"]["torch"] == torch.__version__
    for operator in ("gemm", "decode_attention", "prefill_attention", "copy", "launch"):
        table = pl.read_parquet(tmp_path / "p" / f"{operator}.parquet")
        assert (table["seconds"] > 0).all()
        assert table["kernel"].str.starts_with("torch_").all()
    json.dumps(manifest, allow_nan=False)


def test_the_processor_is_described(device):
    facts = device.facts()
    assert isinstance(device, TorchCpu)
    assert (facts.kind, facts.backend, facts.graphs) == ("cpu", "torch", False)
    assert facts.flops_per_s > 1e6
    assert facts.bytes_per_s > 1e6
    assert device.free_bytes() > 0
    assert device.clock_mhz() is None


def test_libraries_are_used_where_a_launch_of_them_succeeds(monkeypatch):
    from frontier.profiler import libraries

    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    class Module:
        flash_attn_varlen_func = staticmethod(broken)
        fused_experts = staticmethod(lambda x, *_: x)

    monkeypatch.setattr(libraries.importlib, "import_module", lambda _: Module)

    def version(name):
        if name != "vllm":
            raise libraries.importlib.metadata.PackageNotFoundError(name)
        return "0.32"

    monkeypatch.setattr(libraries.importlib.metadata, "version", version)
    bench = Bench(torch, "cpu")
    found = libraries.find_libraries(bench)
    assert list(bench.libraries) == ["vllm_fused_experts"]
    assert found["vllm_fused_experts"] == "0.32"
    assert found["vllm_flash_attn"] == "0.32, not used: RuntimeError: no kernel image is available"
    assert found["torch_grouped_mm"].startswith(("used", "not used: "))
    assert bench.grouped_mm is (found["torch_grouped_mm"] == "used")
