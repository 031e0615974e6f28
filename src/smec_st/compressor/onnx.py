"""Export a compressor alone as a small ONNX model, for services without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smec_st.quantization.interface import CompressorLike
from smec_st.system.files import write_bytes
from smec_st.system.optional import load_optional

OPSET = 18
IR_VERSION = 9  # the version that came with opset 18, so that older runtimes can read the file
TINY = 1e-12


def write_onnx(compressor: CompressorLike, path: Path, dim: int | None = None) -> None:
    """Write one size of a compressor; see :meth:`~smec_st.Compressor.to_onnx`.

    The metadata of the file contain the fingerprint, the size, and the name of the backbone.

    Raises:
        DataError: If the package ``onnx`` is missing.
    """
    onnx = load_optional("onnx", "writing ONNX")
    helper = onnx.helper
    folded = compressor.map_for(dim)
    constants: dict[str, np.ndarray] = {
        "axis": np.array([1], dtype=np.int64),
        "tiny": np.array(TINY, dtype=np.float32),
    }
    nodes: list[Any] = _normalize(helper, "vectors", "unit")
    source = "unit"
    for depth, layer in enumerate(folded.layers):
        constants[f"weight{depth}"] = np.ascontiguousarray(layer.weight.T)
        nodes.append(helper.make_node("MatMul", [source, f"weight{depth}"], [f"layer{depth}"]))
        source = f"layer{depth}"
        if layer.activation is not None:
            nodes += _activation(helper, layer.activation, source, f"active{depth}", constants)
            source = f"active{depth}"
    nodes += _normalize(helper, source, "embedding")
    graph = helper.make_graph(
        nodes,
        "compressor",
        [helper.make_tensor_value_info("vectors", onnx.TensorProto.FLOAT, ["n", folded.in_dim])],
        [helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", folded.out_dim])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="smec-st")
    model.ir_version = IR_VERSION
    backbone = compressor.info.get("backbone") or {}
    metadata = {"fingerprint": compressor.fingerprint, "dim": str(folded.out_dim), "model": str(backbone.get("model"))}
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    write_bytes(path, model.SerializeToString())


def _normalize(helper: Any, source: str, target: str) -> list[Any]:
    """Return nodes that scale rows to length 1."""
    return [
        helper.make_node("ReduceL2", [source, "axis"], [f"{target}_length"], keepdims=1),
        helper.make_node("Max", [f"{target}_length", "tiny"], [f"{target}_safe"]),
        helper.make_node("Div", [source, f"{target}_safe"], [target]),
    ]


def _activation(helper: Any, name: str, source: str, target: str, constants: dict[str, np.ndarray]) -> list[Any]:
    """Return nodes that apply ReLU, SiLU or GELU; the constants that they need are added to ``constants``."""
    if name == "relu":
        return [helper.make_node("Relu", [source], [target])]
    if name == "silu":
        return [
            helper.make_node("Sigmoid", [source], [f"{target}_gate"]),
            helper.make_node("Mul", [source, f"{target}_gate"], [target]),
        ]
    for constant, value in (("root", np.sqrt(0.5)), ("one", 1), ("half", 0.5)):
        constants[constant] = np.array(value, dtype=np.float32)
    return [
        helper.make_node("Mul", [source, "root"], [f"{target}_scaled"]),
        helper.make_node("Erf", [f"{target}_scaled"], [f"{target}_erf"]),
        helper.make_node("Add", [f"{target}_erf", "one"], [f"{target}_gate"]),
        helper.make_node("Mul", [source, "half"], [f"{target}_half"]),
        helper.make_node("Mul", [f"{target}_half", f"{target}_gate"], [target]),
    ]
