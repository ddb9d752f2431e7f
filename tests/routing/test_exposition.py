"""Reading engines' metrics: a recorded vLLM, several engines, odd labels, old names, NIM's names."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from routing.exposition import EngineCounters, Exposition, read

RECORDED = Path(__file__).parent / "recorded" / "vllm_0_32_metrics.txt"


def test_a_recorded_vllm_is_read() -> None:
    assert read("vllm", RECORDED.read_bytes()) == Exposition(
        waiting=0.0,
        running=0.0,
        kv_used_fraction=0.0,
        counters=EngineCounters(
            prompt_tokens=791.0, generation_tokens=63.0, started_s=1795412196.11
        ),
    )


def test_engines_of_one_endpoint_are_summed_and_their_caches_averaged() -> None:
    text = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.6
vllm:prompt_tokens_total{engine="0",model_name="m"} 1e+06
vllm:prompt_tokens_total{engine="1",model_name="m"} 5
"""
    seen = read("vllm", text)
    assert (seen.running, seen.waiting, seen.kv_used_fraction) == (8.0, 1.0, 0.4)
    assert seen.counters.prompt_tokens == 1_000_005


def test_label_values_may_hold_braces_quotes_and_blanks() -> None:
    text = b'vllm:num_requests_waiting{model_name="a} 7 {\\"b\\\\",engine="0"} 4.0 1795412196\n'
    assert read("vllm", text).waiting == 4.0


def test_no_labels_and_the_first_line_are_fine() -> None:
    assert read("vllm", b"vllm:num_requests_waiting 2").waiting == 2.0


def test_older_names_are_still_understood() -> None:
    text = b'vllm:gpu_cache_usage_perc{m="x"} 0.5\nvllm:generation_tokens{m="x"} 9\n'
    seen = read("vllm", text)
    assert (seen.kv_used_fraction, seen.counters.generation_tokens) == (0.5, 9.0)


def test_a_name_that_only_begins_alike_is_another_metric() -> None:
    text = b'vllm:num_requests_waiting_by_reason{reason="capacity"} 8.0\n'
    assert read("vllm", text).waiting is None


def test_a_metric_named_in_a_comment_is_not_a_sample() -> None:
    assert read("vllm", b"# HELP vllm:num_requests_waiting 5 of them\n").waiting is None


def test_numbers_that_are_none_are_unknown() -> None:
    text = b"vllm:num_requests_waiting NaN\nvllm:num_requests_running +Inf\n"
    assert read("vllm", text) == Exposition()


def test_nim_speaks_without_prefix_or_as_vllm() -> None:
    plain = b'num_requests_waiting{model_name="m"} 2.0\ngpu_cache_usage_perc 0.25\n'
    assert read("nim", plain).waiting == 2.0
    assert read("nim", plain).kv_used_fraction == 0.25
    assert read("nim", b"vllm:num_requests_waiting 3.0\n").waiting == 3.0
    assert read("vllm", plain).waiting is None


def test_the_openai_dialect_promises_nothing() -> None:
    assert read("openai", RECORDED.read_bytes()) == Exposition()


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(junk: bytes) -> None:
    read("vllm", b"vllm:num_requests_waiting" + junk)
    read("nim", junk)
