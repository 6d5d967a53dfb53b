"""Every known format, told from its header and read from a small file."""

import gzip
import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from frontier.errors import WorkloadError
from frontier.workloads import NO_SESSION, load_trace

S, MS = 10**9, 10**6

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 00:00:01+00:00,76,15
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,0,0,0,API log
118,GPT-4,417,276,693,API log
"""
BURSTGPT_SESSIONS = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440161.0,,2,ChatGPT,36,29,65,API log
19440192.0,1722ac82,8,GPT-4,1779,123,1902,Conversation log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens
0.0,374,44
4.314579,396,109
5.8926549999999995,91,16
"""
SHAREGPT = """request_id,arrival_s,num_prompt_tokens,num_output_tokens,block_hash_ids_16
0,0.5,40,3,0|1
1,0.75,32,4,0|2
2,1.0,9,5,
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and gives its path."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def prompts(trace):
    """Return the list of (stream, start, length) of each request."""
    columns = (trace.segment_stream, trace.segment_start, trace.segment_length)
    parts = list(zip(*(column.tolist() for column in columns), strict=True))
    offsets = trace.segment_offsets.tolist()
    return [parts[a:b] for a, b in pairwise(offsets)]


def test_azure_2023(write):
    trace = load_trace(write("t.csv", AZURE_2023))
    assert trace.report.format == "azure"
    assert trace.arrival_ns.tolist() == [0, 4_314_579_000, 4_541_877_000]
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert trace.report.arrival_offset_ns == 1_700_158_546_680_590_000


def test_columns_have_the_types_of_the_simulator(write):
    trace = load_trace(write("t.csv", BURSTGPT_SESSIONS))
    types = [
        trace.arrival_ns.dtype,
        trace.prompt_tokens.dtype,
        trace.output_tokens.dtype,
        trace.session.dtype,
    ]
    assert types == [np.int64, np.uint32, np.uint32, np.uint32]
    assert (trace.priority, trace.segment_offsets) == (None, None)


def test_azure_2024(write):
    trace = load_trace(write("t.csv", AZURE_2024))
    assert trace.arrival_ns.tolist() == [0, 7_405_000, 990_070_000]


def test_mooncake(write):
    def record(timestamp, length, output, hashes):
        return {"timestamp": timestamp, "input_length": length, "output_length": output, "hash_ids": hashes}

    text = lines(
        record(27_482, 6_955, 52, [*range(46, 58), 2353, 2354]), record(30_535, 6_472, 26, [*range(46, 59)])
    )
    trace = load_trace(write("t.jsonl", text))
    assert trace.report.format == "mooncake"
    assert trace.arrival_ns.tolist() == [0, 3_053 * MS]
    assert prompts(trace) == [[(0, 0, 6955)], [(0, 0, 6144), (1, 0, 328)]]


def test_mooncake_hashes_include_the_partial_block(write):
    record = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1]}
    with pytest.raises(WorkloadError, match=r"has 1 hashes, must have 2: 600 prompt tokens in blocks of 512"):
        load_trace(write("t.jsonl", lines(record)))


def test_qwen_bailian(write):
    def record(chat, parent, timestamp, length, hashes):
        return {
            "chat_id": chat, "parent_chat_id": parent, "timestamp": timestamp, "input_length": length,
            "output_length": 132, "type": "text", "turn": 1, "hash_ids": hashes,
        }  # fmt: skip

    text = lines(
        record(55, -1, 1.5, 33, [1089, 1090, 1091]),
        record(60, -1, 2.25, 33, [7, 8]),
        record(159, 55, 61.114, 48, [1089, 1090, 6326]),
        record(200, 159, 70.0, 16, [1089]),
        record(300, 12, 71.0, 16, [9]),
        record(301, 12, 72.0, 16, [9]),
    )
    trace = load_trace(write("t.jsonl", text))
    assert trace.report.format == "qwen-bailian"
    assert trace.arrival_ns.tolist() == [0, 750 * MS, 59_614 * MS, 68_500 * MS, 69_500 * MS, 70_500 * MS]
    assert trace.session.tolist() == [0, 1, 0, 0, 2, 2], (
        "a chat belongs to the session of the chat it follows"
    )
    segments = prompts(trace)
    assert segments[0] == [(0, 0, 33)]
    assert [length for _, _, length in segments[1]] == [32, 1], "a partial block may have no hash"
    assert segments[2][0] == (0, 0, 32)


def test_burstgpt_failures_are_counted_and_left_out(write):
    trace = load_trace(write("t.csv", BURSTGPT))
    assert trace.report.format == "burstgpt"
    assert trace.prompt_tokens.tolist() == [472, 417]
    assert trace.arrival_ns.tolist() == [0, 113 * S]
    assert (trace.report.rows_read, trace.report.rows_skipped) == (
        4,
        {"failed when recorded (0 output tokens)": 2},
    )
    assert trace.session is None


def test_burstgpt_sessions(write):
    trace = load_trace(write("t.csv", BURSTGPT_SESSIONS))
    assert trace.session.tolist() == [0, NO_SESSION, 0]
    assert trace.arrival_ns.tolist() == [0, 51 * S, 82 * S]


def test_vidur(write):
    trace = load_trace(write("t.csv", VIDUR))
    assert trace.report.format == "vidur"
    assert trace.arrival_ns.tolist() == [0, 4_314_579_000, 5_892_655_000]


def test_sharegpt_replay(write):
    trace = load_trace(write("t.csv", SHAREGPT))
    assert trace.report.format == "sharegpt-replay"
    assert trace.arrival_ns.tolist() == [0, S // 4, S // 2]
    segments = prompts(trace)
    assert segments[0][0] == (0, 0, 32)
    assert segments[0][1][1:] == (0, 8)
    assert segments[1][0] == (0, 0, 16)
    assert segments[2] == []


@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
def test_frontiers_own_columns_in_any_container(tmp_path, container):
    frame = pl.DataFrame(
        {
            "arrival_ns": [3, 3, 10],
            "prompt_tokens": [5, 6, 7],
            "output_tokens": [1, 2, 3],
            "priority": [0, -2, 5],
            "session": [4, NO_SESSION, 4],
        }
    )
    path = tmp_path / f"t.{container}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[container](path)
    trace = load_trace(path)
    assert trace.report.format == "frontier"
    assert trace.arrival_ns.tolist() == [0, 0, 7]
    assert trace.priority.tolist() == [0, -2, 5]
    assert trace.session.tolist() == [0, NO_SESSION, 0]


def test_plain_columns_in_any_container(tmp_path):
    frame = pl.DataFrame(
        {
            "when": [0.5, 1.0, 1.5],
            "in": [20, 20, 16],
            "out": [1, 2, 3],
            "user": ["a", None, "b"],
            "rank": [3, 2, 1],
            "blocks": [[1, 2, 3], [1, 2], [1, 4]],
        }
    )
    as_text = frame.with_columns(pl.col("blocks").list.eval(pl.element().cast(pl.String)).list.join("|"))
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_ndjson(tmp_path / "t.jsonl")
    as_text.write_csv(tmp_path / "t.csv")
    roles = {
        "arrival": "when",
        "prompt_tokens": "in",
        "output_tokens": "out",
        "session": "user",
        "priority": "rank",
        "hash_ids": "blocks",
    }
    for container in ("csv", "jsonl", "parquet"):
        trace = load_trace(tmp_path / f"t.{container}", columns=roles, time_unit="ms", block_size=8)
        assert trace.report.format == "plain"
        assert trace.arrival_ns.tolist() == [0, 500_000, 1_000_000], container
        assert trace.session.tolist() == [0, NO_SESSION, 1]
        assert trace.priority.tolist() == [3, 2, 1]
        first, second, third = prompts(trace)
        assert first == [(0, 0, 20)]
        assert (second[0], second[1][1:]) == ((0, 0, 16), (0, 4))
        assert (third[0], third[1][1:]) == ((0, 0, 8), (0, 8))


def test_columns_replace_those_of_a_format(write):
    text = VIDUR.replace("arrived_at", "sent_at")
    trace = load_trace(write("t.csv", text), format="vidur", columns={"arrival": "sent_at"}, time_unit="ms")
    assert trace.arrival_ns.tolist() == [0, 4_314_579, 5_892_655]


def test_columns_replace_those_of_a_format_that_is_detected(write):
    head, *rows = VIDUR.strip().split("\n")
    text = "\n".join([f"{head},level", *(f"{row},{number}" for number, row in enumerate(rows))])
    trace = load_trace(write("t.csv", text), columns={"priority": "level"})
    assert trace.report.format == "vidur"
    assert trace.priority.tolist() == [0, 1, 2]
    turned = load_trace(write("t.csv", text), columns={"prompt_tokens": "num_decode_tokens"})
    assert turned.prompt_tokens.tolist() == trace.output_tokens.tolist() == turned.output_tokens.tolist()


def test_a_detected_format_keeps_its_unit_and_its_blocks(write):
    record = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2], "who": "a"}
    later = record | {"timestamp": 1500}
    trace = load_trace(write("t.jsonl", lines(record, later)), columns={"session": "who"})
    assert trace.report.format == "mooncake"
    assert trace.arrival_ns.tolist() == [0, 1_500_000_000]
    assert trace.session.tolist() == [0, 0]
    assert trace.segment_offsets is not None


def test_lengths_alone_arrive_at_once_on_demand(write):
    roles = {"arrival": None, "prompt_tokens": "p", "output_tokens": "o"}
    trace = load_trace(write("t.csv", "p,o\n3,4\n5,6\n"), columns=roles)
    assert trace.arrival_ns.tolist() == [0, 0]


def test_parquet_columns_of_dates_and_floats(tmp_path):
    frame = pl.DataFrame(
        {"t": ["2024-05-10 00:00:00", "2024-05-10 00:00:00.5"], "p": [3.0, 4.0], "o": ["1", "2"]}
    )
    frame = frame.with_columns(pl.col("t").str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us"))
    frame.write_parquet(tmp_path / "t.parquet")
    roles = {"arrival": "t", "prompt_tokens": "p", "output_tokens": "o"}
    trace = load_trace(tmp_path / "t.parquet", columns=roles)
    assert trace.arrival_ns.tolist() == [0, 500_000_000]
    assert trace.prompt_tokens.tolist() == [3, 4]


def test_a_file_is_known_by_its_content_if_its_name_says_nothing(tmp_path, write):
    record = {"arrival_ns": 0, "prompt_tokens": 1, "output_tokens": 1}
    assert len(load_trace(write("trace", lines(record)))) == 1
    assert len(load_trace(write("trace.txt", VIDUR))) == 3
    pl.DataFrame([record]).write_parquet(tmp_path / "columns")
    assert len(load_trace(tmp_path / "columns")) == 1


@pytest.mark.parametrize("chunk_bytes", [1, 7, 40, 41, 1000])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_pieces_line_endings_and_compression_change_nothing(tmp_path, chunk_bytes, ending):
    whole = load_trace("azure-2023-conv", max_requests=30)
    rows = "\n".join(
        f"{a / S:.7f},{p},{o}"
        for a, p, o in zip(whole.arrival_ns, whole.prompt_tokens, whole.output_tokens, strict=True)
    )
    text = "\ufeffarrived_at,num_prefill_tokens,num_decode_tokens\n" + rows.replace("\n", "\n\n", 2)
    data = text.replace("\n", ending).encode()
    path, packed = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    path.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    for file in (path, packed):
        trace = load_trace(file, chunk_bytes=chunk_bytes)
        assert trace.arrival_ns.tolist() == whole.arrival_ns.tolist()
        assert trace.prompt_tokens.tolist() == whole.prompt_tokens.tolist()
        assert trace.report.rows_read == 30


def test_pieces_change_nothing_for_block_hashes_and_sessions(write):
    records = [
        {
            "chat_id": i,
            "parent_chat_id": i - 3 if i % 5 else -1,
            "timestamp": i / 8,
            "input_length": 16 * (i % 4 + 1),
            "output_length": 1,
            "hash_ids": [j * (i % 3) for j in range(i % 4 + 1)],
        }
        for i in range(40)
    ]
    path = write("t.jsonl", lines(*records))
    whole, pieces = load_trace(path), load_trace(path, chunk_bytes=100)
    assert prompts(whole) == prompts(pieces)
    assert whole.session.tolist() == pieces.session.tolist()


def test_quoted_cells(write):
    text = 'arrived_at,name,"num_prefill_tokens",num_decode_tokens\n0,"a, ""b""","12",3\n1,plain,13,4\n'
    trace = load_trace(write("t.csv", text))
    assert trace.prompt_tokens.tolist() == [12, 13]


def test_reading_stops_after_the_requests_wanted(write):
    text = VIDUR + "broken\n"
    trace = load_trace(write("t.csv", text), max_requests=2, chunk_bytes=60)
    assert (len(trace), trace.report.rows_read) == (2, 2)
    burst = load_trace(write("b.csv", BURSTGPT), max_requests=1)
    assert (len(burst), burst.report.rows_read, burst.report.rows_skipped) == (1, 1, {})


def test_unsorted_rows_are_sorted_stably_on_demand(write):
    text = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,block_hash_ids_16\n"
    text += "0,2,16,1,7\n1,1,32,2,8|9\n2,2,16,3,7\n3,1,33,4,8|9\n"
    trace = load_trace(write("t.csv", text), on_unsorted="sort")
    assert trace.arrival_ns.tolist() == [0, 0, S, S]
    assert trace.output_tokens.tolist() == [2, 4, 1, 3]
    segments = prompts(trace)
    assert segments[0] == [segments[1][0]]
    assert segments[2] == segments[3]
    assert trace.report.sorted


def test_the_report_reads_well(write):
    path = write("t.csv", BURSTGPT)
    expected = f"{path} (burstgpt): 2 of 4 rows; skipped 2 (2 x failed when recorded (0 output tokens))"
    assert str(load_trace(path).report) == expected
