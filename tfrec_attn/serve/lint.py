"""`python -m tfrec_attn.serve.lint saved_models/movielens/1`: whether stock TF Serving can
run a SavedModel, as far as that can be told without it.

What its image of 2.20.0 has: the kernels of TensorFlow's core, and the ops of
tensorflow-text 2.20 that its build file lists under `ops_lib`.
"""

import argparse
import collections
import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import node_def_pb2
from tensorflow.core.protobuf import (
    config_pb2,
    meta_graph_pb2,
    rewriter_config_pb2,
    saved_model_pb2,
)
from tensorflow.python.framework import kernels
from tensorflow.python.saved_model import loader_impl
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfrec_attn.serve.server.servable import (
    DEFAULT_SIGNATURE,
    WARM_UP_FILE,
    WARM_UP_LIMIT,
    first_line,
)

TAG = "serve"
# The automaton of BERT's 30,522 word pieces takes 1.7 MB, of 119,547 multilingual ones 7.
LARGEST_CONSTANT = 16 << 20
TOLERANCE = 1e-4
# The ops that the targets of `ops_lib` register, but for the round robin trimmer's.
_TEXT_OPS = """
CaseFoldUTF8 ConstrainedSequence FastBertNormalize FastWordpieceTokenizeWithOffsets
FindSourceOffsets MaxSpanningTree NormalizeUTF8 NormalizeUTF8WithOffsetsMap
PhraseTokenize RegexSplitWithOffsets RougeL SentenceFragments SentenceFragmentsV2
SentencepieceDetokenizeOp SentencepieceIdToStringOp SentencepieceOp
SentencepieceStringToIdOp SentencepieceTokenizeOp SentencepieceTokenizeWithOffsetsOp
SentencepieceVocabSizeOp SplitMergeTokenizeWithOffsets TFText>BoiseTagsToOffsets
TFText>ByteSplitByOffsets TFText>ByteSplitWithOffsets TFText>FastSentencepieceDetokenize
TFText>FastSentencepieceTokenize TFText>FastWordpieceDetokenize TFText>NgramsStringJoin
TFText>OffsetsToBoiseTags TFText>PhraseDetokenize TFText>Utf8Binarize
TFText>WhitespaceTokenizeWithOffsetsV2 TokenizerFromLogits
UnicodeScriptTokenizeWithOffsets WhitespaceTokenizeWithOffsets
WordpieceTokenizeWithOffsets
"""
TEXT_OPS = frozenset(_TEXT_OPS.split())
# What is asked is whether the graph runs, not how fast: it is not optimized first.
_PLAIN = config_pb2.ConfigProto(
    graph_options=config_pb2.GraphOptions(
        rewrite_options=rewriter_config_pb2.RewriterConfig(disable_meta_optimizer=True)
    )
)
_PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


def lint(path: Path, *, largest: int = LARGEST_CONSTANT, loaded=None) -> list[str]:
    """Everything about a version folder that would fail, or fail to be served well.

    Args:
      path: The folder.
      largest: Bytes that a constant of the graph may have: a larger one is in memory once
        more for each function that holds it, and a graph ends at 2 GB.
      loaded: What `tf.saved_model.load` gave, where it is loaded already.

    Returns:
      One line for each fault.

    Raises:
      ValueError: When the folder holds no SavedModel tagged `serve`.
    """
    graph = _meta_graph(path)
    signatures = {
        name: signature
        for name, signature in graph.signature_def.items()
        if not name.startswith("__")
    }
    faults = [*_node_faults(graph, largest), *_shape_faults(signatures)]
    requests, more = _warm_up(path / WARM_UP_FILE, signatures)
    faults += more
    # Without the ops there is nothing that could be loaded.
    if any("op " in fault for fault in faults):
        return faults
    return faults + list(_run_faults(path, signatures, requests, loaded))


def _meta_graph(path: Path) -> meta_graph_pb2.MetaGraphDef:
    file = path / "saved_model.pb"
    if not file.is_file():
        raise ValueError(
            f"{path} is no version folder: it has no saved_model.pb. Give a folder such as "
            "saved_models/movielens/1."
        )
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{file} is no SavedModel: {error}.") from error
    for graph in saved.meta_graphs:
        if set(graph.meta_info_def.tags) == {TAG}:
            return graph
    raise ValueError(
        f'{path} has no graph tagged "{TAG}", which is the one that is served.'
    )


def _nodes(graph) -> Iterator[tuple[str, node_def_pb2.NodeDef]]:
    for node in graph.graph_def.node:
        yield "the graph", node
    for function in graph.graph_def.library.function:
        for node in function.node_def:
            yield f"function {function.signature.name}", node


def _node_faults(graph, largest: int) -> Iterator[str]:
    functions = {f.signature.name for f in graph.graph_def.library.function}
    unknown: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for place, node in _nodes(graph):
        if node.op not in functions and (why := _missing(node.op)):
            unknown[node.op, why].append(f"{node.name} in {place}")
        size = node.attr["value"].tensor.ByteSize() if node.op == "Const" else 0
        if size > largest:
            yield (
                f"constant {node.name} in {place} has {size:,} bytes, more than "
                f"{largest:,}: hold it in a tf.Variable"
            )
    for (op, why), nodes in unknown.items():
        yield f"op {op} {why}: {nodes[0]}, {len(nodes)} in all"
    for function in graph.graph_def.library.function:
        if function.attr["_XlaMustCompile"].b:
            yield (
                f"function {function.signature.name} is compiled by XLA (jit_compile): the "
                "image has no compiler"
            )


@functools.cache
def _missing(op: str) -> str:
    """Why the image has no such op; empty where it has. Kernels are looked for slowly."""
    if op in _PYTHON_OPS:
        return "calls back into Python"
    if op.startswith("TFText>RoundRobin"):
        return "is the round robin trimmer's, which images up to 2.19 lack"
    if op in TEXT_OPS:
        return ""
    if not hasattr(tf.raw_ops, op):
        return "is neither TensorFlow's core's nor in tensorflow-text's ops_lib"
    found = kernels.get_registered_kernels_for_op(op).kernel
    on_cpu = any(kernel.device_type in ("CPU", "DEFAULT") for kernel in found)
    return "" if on_cpu else "has no kernel for the CPU"


def _shape_faults(signatures: Mapping[str, meta_graph_pb2.SignatureDef]) -> Iterator[str]:
    if not signatures:
        yield "there is no signature to call"
    for name, signature in signatures.items():
        for output, info in signature.outputs.items():
            where = f"signature {name}, output {output}"
            if info.WhichOneof("encoding") != "name":
                yield f"{where} is sparse, ragged or composite: give plain tensors"
            elif info.tensor_shape.unknown_rank:
                yield f"{where} has no known rank: answers need a first dimension"
            elif not info.tensor_shape.dim:
                yield f"{where} is a scalar: in a batch every request needs its own row"
        first = {
            output: info.tensor_shape.dim[0].size
            for output, info in signature.outputs.items()
            if info.tensor_shape.dim
        }
        if len(set(first.values())) > 1:
            yield f"signature {name}: outputs differ in their first dimension: {first}"


def _warm_up(path: Path, signatures) -> tuple[list[predict_pb2.PredictRequest], list[str]]:
    """The requests of a warm-up file, and what is wrong with it."""
    if not path.is_file():
        return [], [f"{WARM_UP_FILE} is missing: the first requests would wait for tracing"]
    requests, faults = [], []
    try:
        records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    except tf.errors.DataLossError as error:
        return [], [f"{WARM_UP_FILE} is no TFRecord file: {error.message}"]
    if not 0 < len(records) <= WARM_UP_LIMIT:
        faults.append(
            f"{WARM_UP_FILE} has {len(records)} records: 1 to {WARM_UP_LIMIT} are read"
        )
    for number, record in enumerate(records[:WARM_UP_LIMIT], 1):
        where = f"{WARM_UP_FILE}, record {number}"
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError:
            faults.append(f"{where} is no PredictionLog")
            continue
        if not log.HasField("predict_log"):
            continue
        request = log.predict_log.request
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in signatures:
            faults.append(f"{where} calls {name!r}, which is no signature")
        elif set(request.inputs) != set(signatures[name].inputs):
            odd = sorted(set(request.inputs) ^ set(signatures[name].inputs))
            faults.append(f"{where}: the inputs {', '.join(odd)} are not those of {name}")
        else:
            requests.append(request)
    unheard = set(signatures) - {
        r.model_spec.signature_name or DEFAULT_SIGNATURE for r in requests
    }
    if requests and unheard:
        faults.append(f"{WARM_UP_FILE} has no request to {', '.join(sorted(unheard))}")
    return requests, faults


def _run_faults(path: Path, signatures, requests, loaded) -> Iterator[str]:
    """What the requests of the warm-up find: by a C++ session, as TF Serving runs it, and
    by Python."""
    try:
        loaded = loaded or tf.saved_model.load(str(path), tags=[TAG])
        session = tf.compat.v1.Session(graph=tf.Graph(), config=_PLAIN)
        with session.graph.as_default():
            loader_impl.SavedModelLoader(str(path)).load(session, [TAG])
    except (tf.errors.OpError, RuntimeError, OSError, ValueError) as error:
        yield f"it does not load: {str(error).splitlines()[0]}"
        return
    with contextlib.closing(session):
        for number, request in enumerate(requests, 1):
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            where = f"{WARM_UP_FILE}, request {number} to {name}"
            inputs = {k: tf.make_ndarray(proto) for k, proto in request.inputs.items()}
            try:
                served = _in_session(session, signatures[name], inputs)
                tensors = {k: tf.constant(v) for k, v in inputs.items()}
                python = loaded.signatures[name](**tensors)
            except (tf.errors.OpError, ValueError, TypeError) as error:
                yield f"{where} fails: {first_line(str(error))}"
                continue
            sizes = {k: v.shape[0] if v.ndim else 1 for k, v in served.items()}
            if set(sizes.values()) != {len(next(iter(inputs.values())))}:
                yield f"{where}: the batch is not the first dimension of {sizes}"
            for output, value in served.items():
                if not _same(value, python[output].numpy()):
                    yield f"{where}: {output} is another one in a session than in Python"


def _in_session(session, signature, inputs) -> dict[str, np.ndarray]:
    fetches = {name: info.name for name, info in signature.outputs.items()}
    feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
    return session.run(fetches, feeds)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    return np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def main(argv=None) -> int:
    """Prints the faults; 1 where there are any, 2 where there is no SavedModel."""
    parser = argparse.ArgumentParser(
        prog="tfrec_attn.serve.lint", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument(
        "version", type=Path, help="version folder, saved_models/<name>/<n>"
    )
    parser.add_argument(
        "--largest-constant",
        type=int,
        default=LARGEST_CONSTANT,
        metavar="BYTES",
        help=f"that a constant of the graph may have (default: {LARGEST_CONSTANT:,})",
    )
    args = parser.parse_args(argv)
    # Registers the tokenizer's ops: a graph that holds them does not load without this.
    importlib.import_module("tensorflow_text")
    try:
        faults = lint(args.version, largest=args.largest_constant)
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.serve.lint: {error}", file=sys.stderr)
        return 2
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{args.version}: no fault found")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
