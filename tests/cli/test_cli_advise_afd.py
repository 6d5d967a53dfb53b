"""`frontier advise-afd`, and the other commands on attention and FFN clusters."""

import json

import frontier

NAME = "afd-qwen3-235b"
FEW = ("--attention-ranks", "4,8", "--ffn-ranks", "4,16", "--micro-batches", "3")


def test_the_best_layout_comes_first(cli):
    document = json.loads(cli("advise-afd", NAME, *FEW, "--json").stdout)
    shown = [each["tokens_per_s_per_gpu"] for each in document["choices"]]
    assert shown == sorted(shown, reverse=True)
    assert all(each["step_s"] <= 0.05 for each in document["choices"])
    assert {each["ffn_ranks"] for each in document["too_large"]} == {4}
    found = frontier.advise_afd(NAME, attention_ranks=(4, 8), ffn_ranks=(4, 16), micro_batches=(3,))
    assert [each.tokens_per_s_per_gpu for each in found.choices] == shown
    text = cli("advise-afd", NAME, *FEW, "--top", "1").stdout
    assert "1 more keep the limit" in text
    assert "2 do not fit into the memory of FFN ranks: 4:4, 8:4" in text


def test_wrong_arguments_are_named(cli):
    for arguments, words in (
        (("--ffn-ranks", "a"), "must be numbers such as"),
        (("--tpot", "soon"), "--tpot"),
        (("--cluster", "ffn"), "no attention cluster has this name"),
    ):
        result = cli("advise-afd", NAME, *arguments)
        assert result.exit_code == 3
        assert words in result.stderr
    assert "has no attention cluster" in cli("advise-afd", "pdd-llama-70b").stderr


def test_check_shows_both_sides(cli):
    text = cli("check", NAME).stdout
    assert text.index("cluster attention") < text.index("cluster ffn")
    assert "no KV cache here" in text
    document = json.loads(cli("check", NAME, "--json").stdout)
    assert document["gpus_total"] == 40
    sizes = [each["cluster"]["gpus_total"] for each in document["clusters"]]
    assert sizes == [16, 8, 16]
    assert "engine" not in document["clusters"][2]


def test_explain_shows_the_stations(cli):
    text = cli("explain", NAME, "--cluster", "attention", "--decode", "96").stdout
    assert "a micro-batch in a layer: attention" in text
    document = json.loads(cli("explain", NAME, "--decode", "96", "--json").stdout)
    assert list(document["clusters"]) == ["prefill", "attention"]
    decode = document["clusters"]["attention"]["steps"][1]
    assert decode["stations"]["micro_batches"] == 3
    assert "stations" not in document["clusters"]["prefill"]["steps"][1]
