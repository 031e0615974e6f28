"""A compressor as a tiny ONNX model, for services without Python or numpy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.errors import DataError

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

OPSET = 18
IR_VERSION = 9  # of the time of that opset, so that older runtimes read it
TINY = 1e-12


def write_onnx(compressor: Compressor, path: Path, dim: int | None = None) -> None:
    """Write one size of a compressor; see :meth:`~smec_st.Compressor.to_onnx`.

    The file's metadata hold fingerprint, dim and the backbone's name.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise DataError('writing ONNX needs onnx. Install it with `pip install "smec-st[onnx]"`.') from error
    folded = compressor.map_for(dim)
    constants: dict[str, np.ndarray] = {
        "axis": np.array([1], dtype=np.int64),
        "tiny": np.array(TINY, dtype=np.float32),
    }
    nodes: list[Any] = _unit(helper, "vectors", "unit")
    at = "unit"
    for depth, layer in enumerate(folded.layers):
        constants[f"weight{depth}"] = np.ascontiguousarray(layer.weight.T)
        nodes.append(helper.make_node("MatMul", [at, f"weight{depth}"], [f"layer{depth}"]))
        at = f"layer{depth}"
        if layer.activation is not None:
            nodes += _activation(helper, layer.activation, at, f"active{depth}", constants)
            at = f"active{depth}"
    nodes += _unit(helper, at, "embedding")
    graph = helper.make_graph(
        nodes,
        "compressor",
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", folded.in_dim])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", folded.out_dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="smec-st")
    model.ir_version = IR_VERSION
    backbone = compressor.info.get("backbone") or {}
    about = {"fingerprint": compressor.fingerprint, "dim": str(folded.out_dim), "model": str(backbone.get("model"))}
    helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    draft = path.with_name(path.name + ".partial")
    draft.write_bytes(model.SerializeToString())
    os.replace(draft, path)


def _unit(helper: Any, source: str, target: str) -> list[Any]:
    """Rows of length 1."""
    return [
        helper.make_node("ReduceL2", [source, "axis"], [f"{target}_length"], keepdims=1),
        helper.make_node("Max", [f"{target}_length", "tiny"], [f"{target}_safe"]),
        helper.make_node("Div", [source, f"{target}_safe"], [target]),
    ]


def _activation(helper: Any, name: str, source: str, target: str, constants: dict[str, np.ndarray]) -> list[Any]:
    if name == "relu":
        return [helper.make_node("Relu", [source], [target])]
    if name == "silu":
        return [
            helper.make_node("Sigmoid", [source], [f"{target}_gate"]),
            helper.make_node("Mul", [source, f"{target}_gate"], [target]),
        ]
    constants["root"] = np.array(np.sqrt(0.5), dtype=np.float32)
    constants["one"] = np.array(1, dtype=np.float32)
    constants["half"] = np.array(0.5, dtype=np.float32)
    return [
        helper.make_node("Mul", [source, "root"], [f"{target}_scaled"]),
        helper.make_node("Erf", [f"{target}_scaled"], [f"{target}_erf"]),
        helper.make_node("Add", [f"{target}_erf", "one"], [f"{target}_gate"]),
        helper.make_node("Mul", [source, "half"], [f"{target}_half"]),
        helper.make_node("Mul", [f"{target}_half", f"{target}_gate"], [target]),
    ]
