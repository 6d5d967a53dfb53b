"""What cannot be read is refused with its place and what is allowed, or skipped and counted."""

import gzip
import json
import random

import polars as pl
import pytest

from frontier.errors import FrontierError, WorkloadError
from frontier.workloads import load_trace

HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
GOOD = "0.0,10,5\n"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and gives its path."""

    def write(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(path, **options):
    with pytest.raises(WorkloadError) as caught:
        load_trace(path, **options)
    return caught.value


@pytest.mark.parametrize(
    ("row", "column", "value", "part"),
    [
        ("1.0,-5,5", "num_prefill_tokens", "-5", "must be a whole number of tokens in 1 ... 4294967295"),
        ("1.0,0,5", "num_prefill_tokens", "0", "was '0'"),
        ("1.0,NaN,5", "num_prefill_tokens", "NaN", "was 'NaN'"),
        ("1.0,2.5,5", "num_prefill_tokens", "2.5", "was '2.5'"),
        ("1.0,5000000000,5", "num_prefill_tokens", "5000000000", "4294967295"),
        ("1.0,,5", "num_prefill_tokens", "", "is missing"),
        ("1.0,5,abc", "num_decode_tokens", "abc", "was 'abc'"),
        ("1.0,4294967295,1", "num_decode_tokens", 1, "makes 4294967296 tokens with the prompt"),
        ("-1.0,5,5", "arrived_at", "-1.0", "must be a number of s that is not negative"),
        ("soon,5,5", "arrived_at", "soon", "was 'soon'"),
        (",5,5", "arrived_at", "", "is missing"),
        ("1.0,5", None, "1.0,5", "has 2 fields, must have 3 as the header has: '1.0,5'"),
        ("1.0,5,5,5", None, "1.0,5,5,5", "has 4 fields, must have 3"),
        ('1.0,"5,5', None, '1.0,"5,5', "quotes must be closed on their line"),
    ],
)
def test_a_bad_row_stops_the_load(write, row, column, value, part):
    path = write(HEADER + GOOD + "\n" + row + "\n" + GOOD)
    for chunk_bytes in (8, 1 << 20):
        error = refused(path, chunk_bytes=chunk_bytes)
        assert (error.file, error.line, error.column, error.value) == (str(path), 4, column, value)
        assert part in str(error)
        assert f"{path}:4" in str(error)
        assert "on_bad_row='skip'" in str(error)
    assert isinstance(error, FrontierError)
    assert isinstance(error, ValueError)


def test_the_first_bad_row_is_the_one_reported(write):
    rows = "1,1,1\n1,1,x\n1,x,1\nx,1,1\nx\n"
    assert refused(write(HEADER + rows)).line == 3


def test_skipped_rows_are_counted_by_reason(write):
    rows = "0,1,1\n1,0,1\n1,-1,1\n1,x,1\n1,1,x\n2,2,2\nx\n\ny\n3,3,3\n"
    trace = load_trace(write(HEADER + rows), on_bad_row="skip", chunk_bytes=10)
    assert trace.prompt_tokens.tolist() == [1, 2, 3]
    assert trace.report.rows_read == 9
    assert trace.report.rows_skipped == {
        "num_prefill_tokens: zero": 1,
        "num_prefill_tokens: negative": 1,
        "num_prefill_tokens: not a number": 1,
        "num_decode_tokens: not a number": 1,
        "wrong number of fields": 2,
    }


@pytest.mark.parametrize(
    ("line", "column", "part"),
    [
        ("{broken", None, "must be a JSON object"),
        ("[1, 2]", None, "must be a JSON object"),
        ("[" * 20_000, None, "must be a JSON object"),
        ('{"timestamp": 1}', "output_length", "is missing"),
        (
            '{"timestamp": NaN, "input_length": 5, "output_length": 5, "hash_ids": [1]}',
            "timestamp",
            "was 'NaN'",
        ),
        (
            '{"timestamp": 1, "input_length": true, "output_length": 5, "hash_ids": [1]}',
            "input_length",
            "was True",
        ),
        (
            '{"timestamp": 1, "input_length": 5.5, "output_length": 5, "hash_ids": [1]}',
            "input_length",
            "was '5.5'",
        ),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5}', "hash_ids", "is missing"),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": 7}',
            "hash_ids",
            "was 7, must be a list",
        ),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [-1]}', "hash_ids", "was -1"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": ["a"]}', "hash_ids", "was 'a'"),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [1.5]}',
            "hash_ids",
            "was '1.5'",
        ),
        (
            '{"timestamp": 1, "input_length": 513, "output_length": 5, "hash_ids": [1]}',
            "hash_ids",
            "must have 2",
        ),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": [1, 2]}',
            "hash_ids",
            "must have 1",
        ),
    ],
)
def test_bad_json_rows(write, line, column, part):
    good = json.dumps({"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]})
    path = write(f"{good}\n\n{line}\n{good.replace('0', '9', 1)}\n", "t.jsonl")
    error = refused(path, format="mooncake")
    assert (error.line, error.column) == (3, column)
    assert part in str(error)
    trace = load_trace(path, on_bad_row="skip")
    assert (len(trace), sum(trace.report.rows_skipped.values())) == (2, 1)


def test_bad_parquet_rows_are_named_by_their_number(tmp_path):
    frame = pl.DataFrame(
        {"arrival_ns": [0, 1, 2], "prompt_tokens": [1, -4, 2], "output_tokens": [1, None, 2]}
    )
    path = tmp_path / "t.parquet"
    frame.write_parquet(path)
    error = refused(path)
    assert (error.line, error.column, error.value) == (2, "prompt_tokens", -4)
    trace = load_trace(path, on_bad_row="skip")
    assert trace.report.rows_skipped == {"prompt_tokens: negative": 1}
    assert trace.arrival_ns.tolist() == [0, 2]


def test_unsorted_arrivals_are_refused_with_both_lines(write):
    error = refused(write(HEADER + "1,1,1\n\n3,1,1\n2.5,1,1\n"))
    assert (error.line, error.column) == (5, "arrived_at")
    assert "arrives 500ms before the request of line 4" in str(error)
    assert "on_unsorted='sort'" in str(error)


@pytest.mark.parametrize(
    ("text", "name", "part"),
    [
        ("", "t.csv", "is empty"),
        ("\n \n", "t.csv", "is empty"),
        ("", "t.jsonl", "is empty"),
        (HEADER, "t.csv", "has a header but no rows"),
        ("{\n", "t.jsonl", "must be a JSON object"),
        (b"PAR1 and nothing else", "t.parquet", "cannot be read"),
        (b"not gzip", "t.csv.gz", "cannot be read"),
        (gzip.compress(HEADER.encode() + GOOD.encode() * 999, mtime=0)[:-20], "t.csv.gz", "cannot be read"),
        (HEADER.encode() + b"1,\xff\xfe,1\n", "t.csv", "is not UTF-8 text"),
        ("a,b\n1,2\n", "t.csv", "are of no known format"),
    ],
)
def test_files_that_are_no_traces(write, text, name, part):
    path = write(text, name)
    error = refused(path)
    assert error.file == str(path)
    assert part in str(error)


def test_a_trace_without_usable_rows_is_refused(write):
    error = refused(write(HEADER + "x,1,1\ny,1,1\n"), on_bad_row="skip")
    assert "all 2 rows were skipped (2 x arrived_at: not a number)" in str(error)


def test_text_that_is_not_utf8_is_refused_with_its_line(write):
    error = refused(write(HEADER.encode() + GOOD.encode() * 3 + b"1,\xff\xfe,1\n"), chunk_bytes=10)
    assert error.line == 5


def test_missing_files_name_the_built_in_traces(tmp_path):
    assert "must be a file or a built-in trace (azure-2023-conv)" in str(refused(tmp_path / "none.csv"))
    assert "did you mean the built-in trace 'azure-2023-conv'?" in str(refused("azure-2023-con"))
    assert "is a directory" in str(refused(tmp_path))


def test_missing_columns_suggest_the_nearest_name(write):
    error = refused(write(HEADER.replace("decode", "decoding") + GOOD), format="vidur")
    assert (error.line, error.column) == (1, "num_decode_tokens")
    assert "did you mean 'num_decoding_tokens'?" in str(error)


def test_columns_named_twice_are_refused(write):
    error = refused(write("arrived_at,num_prefill_tokens,num_decode_tokens,arrived_at\n1,1,1,1\n"))
    assert "appears 2 times" in str(error)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"format": "vidr"}, "format was 'vidr', must be one of auto, azure"),
        ({"format": "vidr"}, "did you mean 'vidur'?"),
        ({"format": "plain"}, "format 'plain' needs columns"),
        ({"time_unit": "sec"}, "time_unit was 'sec', must be one of s, ms, us, ns, datetime"),
        ({"columns": {"prompt_token": "x"}}, "did you mean 'prompt_tokens'?"),
        ({"format": "plain", "columns": {"arrival": "arrived_at"}}, "names no prompt_tokens"),
        ({"format": "vidur", "columns": {"output_tokens": None}}, "names no output_tokens"),
        ({"format": "vidur", "columns": {"hash_ids": "num_decode_tokens"}}, "hash_ids need block_size"),
        ({"block_size": 16}, "block_size was 16, but there is no column of hash_ids"),
        ({"block_size": 0}, "block_size was 0, must be at least 1"),
        ({"on_bad_row": "ignore"}, "on_bad_row was 'ignore', must be one of error, skip"),
        ({"on_unsorted": "shuffle"}, "on_unsorted was 'shuffle', must be one of error, sort"),
        ({"max_requests": 0}, "max_requests was 0, must be at least 1"),
        ({"chunk_bytes": 0}, "chunk_bytes was 0"),
    ],
)
def test_options_that_are_not_allowed(write, options, part):
    assert part in str(refused(write(HEADER + GOOD), **options))


def test_bad_sessions_are_refused(write):
    record = {"arrival_ns": 0, "prompt_tokens": 1, "output_tokens": 1, "session": [1]}
    error = refused(write(json.dumps(record), "t.jsonl"))
    assert (error.column, error.value) == ("session", [1])
    assert "must be text, a whole number or nothing" in str(error)
    chat = {
        "chat_id": None,
        "parent_chat_id": -1,
        "timestamp": 0,
        "input_length": 1,
        "output_length": 1,
        "hash_ids": [],
    }
    assert "must be the id of the chat" in str(refused(write(json.dumps(chat), "t.jsonl")))


def test_a_hash_count_that_disagrees_with_the_length_is_a_bad_row(write):
    header = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,block_hash_ids_16\n"
    path = write(header + "0,0,40,1,1|2\n1,0,40,1,1|2|3\n")
    error = refused(path)
    assert (error.line, error.column, error.value) == (3, "block_hash_ids_16", 3)
    assert "has 3 hashes, must have 2: 40 prompt tokens in blocks of 16" in str(error)
    skipped = load_trace(path, on_bad_row="skip").report.rows_skipped
    assert skipped == {"block_hash_ids_16: count disagrees with length": 1}


@pytest.mark.parametrize(
    ("role", "values", "part"),
    [
        ("arrival_ns", [[1], [2]], "holds List(Int64), must hold numbers, dates or text"),
        ("arrival_ns", [True, False], "holds Boolean, must hold numbers, dates or text"),
        ("prompt_tokens", [{"a": 1}, {"a": 2}], "must hold numbers or text"),
        ("output_tokens", [b"1", b"2"], "holds Binary, must hold numbers or text"),
        ("priority", [[1], [2]], "must hold numbers or text"),
        ("session", [0.5, 1.5], "holds Float64, must hold whole numbers or text"),
    ],
)
def test_parquet_columns_of_other_types_are_refused(tmp_path, role, values, part):
    columns = {"arrival_ns": [0, 1], "prompt_tokens": [1, 1], "output_tokens": [1, 1], role: values}
    path = tmp_path / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    error = refused(path)
    assert (error.file, error.column) == (str(path), role)
    assert part in str(error)


_FRAGMENTS = [
    "NaN", "-1", "0", "1e999", '"', "\r", "\x00", "|", "||", ",", "\n\n", "[", "}", "null", '""', " ",
    "9" * 40, "9" * 5000, "٣", "\ufeff", "1.5", "-", "inf", ":", "\u2028", "\x85", "é",
]  # fmt: skip
_SOUND = {
    "t.csv": HEADER + GOOD + "1.5,20,3\n2.25,7,1\n",
    "u.csv": "arrival_s,num_prompt_tokens,num_output_tokens,block_hash_ids_16\n0,33,1,1|2\n1,16,2,1\n",
    "v.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
    "t.jsonl": '{"timestamp": 27, "input_length": 1024, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 30, "input_length": 1025, "output_length": 26, "hash_ids": [46, 47, 48]}\n',
}


def loaded(path, **options):
    """Return the trace, None if it is refused."""
    try:
        return load_trace(path, **options)
    except WorkloadError:
        return None


@pytest.mark.parametrize("name", _SOUND)
def test_mutated_traces_load_or_are_refused(write, name):
    draw = random.Random(name)
    outcomes = set()
    for _ in range(150):
        text = _SOUND[name]
        for _ in range(draw.randint(1, 3)):
            begin = draw.randrange(len(text) + 1)
            end = begin + draw.choice([0, 0, 1, 3, 12])
            text = text[:begin] + draw.choice(["", *_FRAGMENTS]) + text[end:]
        path = write(text or "x", name)
        for options in (
            {},
            {"on_bad_row": "skip", "on_unsorted": "sort", "chunk_bytes": draw.choice([1, 9, 99])},
        ):
            trace = loaded(path, **options)
            outcomes.add(trace is not None)
            if trace is not None:
                assert trace.prompt_tokens.min() >= 1
                assert trace.output_tokens.min() >= 1
                assert trace.arrival_ns[0] == 0
                assert len(trace) == trace.report.rows_read - sum(trace.report.rows_skipped.values())
    assert outcomes == {True, False}
