"""A short benchmarks/fuzz.py, against the command with batching and metrics switched on."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

ROOT = Path(__file__).parent.parent.parent


def test_no_malformed_request_is_the_servers_fault(shop_live, shop_base):
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "fuzz.py"),
            f"--model={shop_base}",
            "--requests=390",
            "--flag=--enable_batching",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "390 requests, 0 failed" in run.stdout


@pytest.mark.parametrize("shape", [[1, 0], [1, 1], []])
def test_the_exported_graph_refuses_another_rank_itself(shop_live, shop_base, shape):
    """tensorflow-text reads past a text of shape [1, 0]: a server would die of it."""
    loaded = tf.saved_model.load(str(shop_base / "1"))
    function = loaded.signatures["embed_item"]
    _, specs = function.structured_input_signature
    inputs = [tf.fill([1], "") if name != "text" else tf.fill(shape, "") for name in specs]
    results = [tensor.dtype for tensor in function.outputs]
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with"):
        tf.raw_ops.StatefulPartitionedCall(
            args=[*inputs, *function.captured_inputs], Tout=results, f=function
        )
