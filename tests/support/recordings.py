"""What a vLLM 0.32 answered, byte for byte: streams and whole bodies, with their requests."""

from pathlib import Path

RECORDED = Path(__file__).parents[1] / "gateway" / "contract" / "recorded"
STREAMS = (
    "chat_stream.body",
    "chat_stream_usage.body",
    "chat_stream_continuous.body",
    "chat_stream_continuous_n2.body",
    "completions_stream_continuous.body",
)
