"""GPU presets, and any other GPU from a mapping or a file."""

import re
from pathlib import Path
from typing import Any

import pytest

from frontier.errors import ConfigError
from frontier.hardware import gpu_names, load_gpu
from frontier.hardware import reader as gpu_reader
from frontier.hardware.spec import DEFAULT_IDLE_SHARE
from frontier.models import load_model, operator_program, required_dtypes

RUST = Path(__file__).parents[2] / "rust" / "frontier-core" / "src" / "plan" / "step_time.rs"

MINE: dict[str, Any] = {
    "name": "mine",
    "num_sms": 100,
    "memory": "80GiB",
    "memory_bandwidth": "2TB/s",
    "pcie_bandwidth": "64GB/s",
    "peak": {"bf16": "500TFLOPS"},
}


def plan_fields(struct: str) -> set[str]:
    body = re.search(rf"pub struct {struct} \{{\n(.*?)\n\}}", RUST.read_text(), re.DOTALL)
    assert body is not None
    return set(re.findall(r"^    pub (\w+):", body.group(1), re.MULTILINE))


@pytest.mark.parametrize("name", gpu_names())
def test_presets_are_complete_and_fit_the_plan(name: str) -> None:
    gpu = load_gpu(name)
    plan = gpu.to_plan()
    assert set(plan) == plan_fields("GpuSpec")
    assert set(plan["peak_flops_per_s"]) == plan_fields("PeakFlops")
    assert gpu.name == name
    assert gpu.source
    assert (gpu.price_per_hour_usd is None) == (gpu.price_source is None)
    assert 0 < plan["compute_efficiency"] <= 1
    assert 0 < plan["memory_efficiency"] <= 1
    assert 2**24 < gpu.l2_bytes < 2**29
    assert gpu.power_source
    assert gpu.peak_power_w is not None
    assert gpu.idle_power_w is None  # what listings say is no data sheet
    assert "idle" not in gpu.power_source
    assert gpu.power is not None
    assert gpu.power.idle_w == pytest.approx(DEFAULT_IDLE_SHARE * gpu.peak_power_w)
    assert "CUDA reports" not in gpu.source
    links = gpu.links(2)
    assert set(links.to_plan()) == plan_fields("LinksSpec")
    assert links.node is not None
    assert links.node == gpu.link(2)
    assert set(links.node.to_plan()) == plan_fields("LinkSpec")
    assert links.node.kind == ("nvlink" if gpu.nvlink_bandwidth_bytes_per_s else "pcie")


# name, dense bf16 TFLOP/s, HBM TB/s, memory on the box in GB, last-level cache in MiB, thermal design power
# in W; from data sheets, tuning guides and architecture papers
DATA_SHEETS = [
    ("a100-40gb", 312, 1.555, 40, 40, 400),
    ("a100-80gb", 312, 2.039, 80, 40, 400),
    ("a800", 312, 2.039, 80, 40, 400),
    ("h100", 989, 3.35, 80, 50, 700),
    ("h100-pcie", 756, 2.0, 80, 50, 350),
    ("h800", 989, 3.35, 80, 50, 700),
    ("h20", 148, 4.0, 96, 60, 400),
    ("h200", 989, 4.8, 141, 50, 700),
    ("b200", 2250, 7.7, 180, 126, 1000),
    ("gb200", 2500, 8.0, 186, 126, 1200),
    ("l40s", 362, 0.864, 48, 96, 350),
    ("rtx-4090", 165, 1.008, 24, 72, 450),
    ("rtx-pro-6000", 468, 1.792, 96, 128, 600),
    ("mi300x", 1307, 5.3, 192, 256, 750),
    ("mi355x", 2517, 8.0, 288, 256, 1400),
]


@pytest.mark.parametrize("row", DATA_SHEETS, ids=[row[0] for row in DATA_SHEETS])
def test_figures_are_those_of_the_data_sheets(row: tuple[str, float, float, int, float, int]) -> None:
    name, teraflops, terabytes, gigabytes, cache_mib, watts = row
    gpu = load_gpu(name)
    assert (gpu.l2_bytes, gpu.peak_power_w) == (cache_mib * 2**20, watts)
    assert gpu.peak_flops_per_s.bf16 == pytest.approx(teraflops * 1e12, rel=0.002)
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(terabytes * 1e12)
    box = gigabytes * 2**30  # makers of NVIDIA cards up to 80 GB mean GiB; all report less
    assert 0.88 * box < gpu.memory_bytes < 1.06 * box


def test_data_sheets_cover_all_presets() -> None:
    assert {row[0] for row in DATA_SHEETS} == set(gpu_names())


def test_the_export_variant_differs_in_links_alone() -> None:
    h100, h800 = load_gpu("h100"), load_gpu("h800")
    assert h100.to_plan() == h800.to_plan()
    assert h100.nvlink_bandwidth_bytes_per_s == 450e9
    assert h800.nvlink_bandwidth_bytes_per_s == 200e9


def test_ten_lines_of_yaml_are_enough(tmp_path: Path) -> None:
    doc = gpu_reader.__doc__ or ""
    text = "\n".join(line[4:] for line in doc.splitlines() if line.startswith("    "))
    assert len(text.splitlines()) == 10
    path = tmp_path / "gpu.yaml"
    path.write_text(text)
    gpu = load_gpu(path)
    assert (gpu.name, gpu.num_sms, gpu.memory_bytes) == ("my-gpu", 132, 81090 * 2**20)
    assert gpu.peak_flops_per_s.fp8 == 1979e12
    assert load_gpu(str(path)) == gpu


def test_names_are_read_leniently() -> None:
    assert load_gpu("H100") is load_gpu("h100")
    assert load_gpu("RTX 4090") is load_gpu("rtx_4090")


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"memory": None}, "memory", "is missing; give a size with its unit, as in memory: 81090MiB"),
        ({"peak": None}, "peak", "is missing; give dense rates per type with their unit"),
        ({"nvlink_bandwidth": "450GB/s"}, "gpus_per_node", "as in gpus_per_node: 8"),
        ({"nvlink_latency": "4us"}, "nvlink_latency", "has no effect without nvlink_bandwidth"),
        ({"nic_latency": "5us"}, "nic_latency", "has no effect without nic_bandwidth"),
        ({"idle_power": "70W"}, "idle_power", "has no effect without peak_power"),
        ({"power_source": "a sheet"}, "power_source", "has no effect without peak_power"),
        (
            {"idle_power": "701W", "peak_power": "700W"},
            "idle_power",
            "was '701W', must be at most peak_power (700W)",
        ),
        ({"idle_power": 70}, "idle_power", "was 70, must be a power such as '700W'"),
        ({"l2_cache": "0MiB"}, "l2_cache", "greater than 0"),
        ({"l2": "50MiB"}, "l2", "is no key of a GPU"),
        ({"compute_capability": "sm_90"}, "compute_capability", "must be major.minor, as in '9.0'"),
        ({"compute_capability": 9}, "compute_capability", "was 9, must be major.minor"),
        ({"compute_capability": "9"}, "compute_capability", "was '9', must be major.minor"),
        ({"device_name": 5}, "device_name", "must be a text"),
        ({"memory": "80"}, "memory", "needs a unit"),
        ({"memory": "0GiB"}, "memory", "greater than 0"),
        ({"num_sms": -1}, "num_sms", "negative"),
        ({"num_sms": "many"}, "num_sms", "was 'many'"),
        ({"memory_bandwith": "1TB/s"}, "memory_bandwith", "did you mean 'memory_bandwidth'"),
        ({"memory_bandwidth": 2e12}, "memory_bandwidth", "needs a unit"),
        ({"compute_efficiency": 1.2}, "compute_efficiency", "was 1.2"),
        ({"compute_efficiency": 0}, "compute_efficiency", "greater than 0"),
        ({"peak": {"bf17": "1TFLOPS", "bf16": "1TFLOPS"}}, "peak.bf17", "did you mean 'bf16'"),
        ({"peak": {"fp8": "1TFLOPS"}}, "peak", "neither bf16 nor fp16"),
        ({"peak": "500TFLOPS"}, "peak", "rates per type"),
        ({"peak": {"bf16": "500"}}, "peak.bf16", "needs a unit"),
        ({"kernel_launch": 2e-6}, "kernel_launch", "was 2e-06"),
        ({"name": 3}, "name", "must be a text"),
        ({"price_per_hour": "free"}, "price_per_hour", "was 'free'"),
    ],
)
def test_a_bad_key_is_named_with_its_value(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_gpu(MINE | changes)
    issues = [issue for issue in caught.value.issues if issue.path == path]
    assert any(words in str(issue) for issue in issues)


def test_facts_of_a_gpu_may_be_numbers_of_yaml() -> None:
    assert load_gpu(MINE | {"compute_capability": 10.0}).compute_capability == "10.0"
    linked = MINE | {"nvlink_bandwidth": "450GB/s", "gpus_per_node": 4}
    assert load_gpu(linked).gpus_per_node == 4
    assert load_gpu("a100-80gb").device_name == "NVIDIA A100-SXM4-80GB"


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load_gpu({"name": "", "num_sm": 3, "peak": {"bf16": -1}})
    assert {i.path for i in caught.value.issues} >= {"name", "num_sm", "num_sms", "memory", "peak.bf16"}


def test_unknown_names_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'h200'"):
        load_gpu("h2000")
    with pytest.raises(ConfigError, match="did you mean 'a100-80gb'"):
        load_gpu("a100")
    path = tmp_path / "gpu.yaml"
    path.write_text("name: [")
    with pytest.raises(ConfigError, match=r"line \d+, column \d+"):
        load_gpu(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="a mapping of keys is needed"):
        load_gpu(path)
    path.write_text("a: !!python/object:os.system {}")
    with pytest.raises(ConfigError, match="not YAML"):
        load_gpu(path)


def test_links_follow_the_number_of_ranks() -> None:
    gpu = load_gpu("h100")
    assert gpu.link(1) is None
    eight = gpu.link(8)
    assert eight is not None
    assert (eight.kind, eight.bandwidth_bytes_per_s) == ("nvlink", 450e9)
    with pytest.raises(ConfigError, match="a node has 8 h100"):
        gpu.link(16)
    card = load_gpu("l40s").link(2)
    assert card is not None
    assert (card.kind, card.bandwidth_bytes_per_s) == ("pcie", 32e9)


def test_a_replica_crosses_the_network_where_it_leaves_a_node() -> None:
    gpu = load_gpu("h100")
    alone = gpu.links(1)
    assert (alone.node, alone.network) == (None, None)
    assert alone.to_plan() == {"node": None, "network": None}
    assert gpu.links(8).network is None
    two_nodes = gpu.links(16)
    assert two_nodes.node == gpu.link(8)
    assert two_nodes.network is not None
    assert two_nodes.network.to_plan() == {
        "direct": True,
        "bandwidth_bytes_per_s": 50e9,
        "latency_s": 5e-6,
        "efficiency": 0.8,
    }
    spread = gpu.links(2, 2)
    assert (spread.node, spread.network) == (None, two_nodes.network)
    assert gpu.links(8, 2) == two_nodes
    with pytest.raises(ConfigError, match="a node has 8, but the replica takes 16 GPUs on 1 nodes"):
        gpu.links(16, 1)
    single = load_gpu(MINE)  # one GPU per node, and no network known
    with pytest.raises(ConfigError, match="the network between nodes is not known"):
        single.links(2)


def test_a_cache_left_out_is_that_of_an_h100() -> None:
    assert load_gpu(MINE).l2_bytes == load_gpu("h100").l2_bytes
    assert load_gpu(MINE | {"l2_cache": "40MiB"}).l2_bytes == 40 * 2**20


def test_missing_units_are_told() -> None:
    fp8 = operator_program(load_model("deepseek-v3"), tensor_parallel_size=8)
    assert load_gpu("a100-80gb").unsupported_dtypes(required_dtypes(fp8)) == ["fp8"]
    assert load_gpu("h100").unsupported_dtypes(required_dtypes(fp8)) == []


def test_files_give_power_and_network() -> None:
    assert load_gpu(MINE).power is None
    power = load_gpu(MINE | {"peak_power": "500W"}).power
    assert power is not None
    assert (power.idle_w, power.peak_w) == (pytest.approx(50.0), 500.0)
    given = load_gpu(MINE | {"peak_power": "500W", "idle_power": "80W", "power_source": "my meter"})
    assert given.power is not None
    assert (given.power.idle_w, given.power_source) == (80.0, "my meter")
    linked = load_gpu(MINE | {"nic_bandwidth": "25GB/s", "nic_latency": "7us"})
    network = linked.links(2).network
    assert network is not None
    assert (network.bandwidth_bytes_per_s, network.latency_s) == (25e9, 7e-6)
