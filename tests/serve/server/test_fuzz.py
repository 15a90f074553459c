"""A short benchmarks/fuzz.py, against the command with batching and metrics switched on."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[3]


def test_no_malformed_request_is_the_servers_fault(shop_live, shop_base):
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "fuzz.py"),
            f"--model={shop_base}",
            "--requests=260",
            "--flag=--enable_batching",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "260 requests, 0 failed" in run.stdout


def test_the_exported_graph_refuses_another_rank_itself(shop_live, shop_base):
    """tensorflow-text reads past a text of shape [1, 0]: a server would die of it."""
    loaded = tf.saved_model.load(str(shop_base / "1"))
    function = loaded.signatures["embed_item"]
    _, specs = function.structured_input_signature
    results = [tensor.dtype for tensor in function.outputs]
    for shape in ([1, 0], [1, 1], []):
        texts = {**dict.fromkeys(specs, tf.fill([1], "")), "text": tf.fill(shape, "")}
        inputs = [texts[name] for name in function.function_type.parameters]
        with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with"):
            tf.raw_ops.StatefulPartitionedCall(
                args=[*inputs, *function.captured_inputs], Tout=results, f=function
            )
