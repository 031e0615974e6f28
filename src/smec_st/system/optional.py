"""Import packages that need not be installed, and name the command that installs a missing one."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from smec_st.system.errors import DataError, one_line

#: What ``pip install`` takes to install a package, by import name. Others come with smec-st itself; so does
#: pyarrow, unless smec-st was installed with numpy alone.
INSTALLED_BY = {
    "PIL": "smec-st[images]",
    "chromadb": "smec-st[chroma]",
    "faiss": "smec-st[search]",
    "filelock": "smec-st[search]",
    "h5py": "smec-st[hdf5]",
    "haystack": "smec-st[haystack]",
    "jinja2": "smec-st[report]",
    "joblib": "smec-st[research]",
    "lancedb": "smec-st[lancedb]",
    "langchain_core": "smec-st[langchain]",
    "llama_index": "smec-st[llama-index]",
    "matplotlib": "smec-st[plots]",
    "milvus_lite": "smec-st[milvus]",
    "mteb": "smec-st[mteb]",
    "onnx": "smec-st[onnx]",
    "onnxruntime": "smec-st[onnx]",
    "onnxscript": "smec-st[onnx]",
    "optimum": "optimum-onnx",
    "orjson": "smec-st[serve]",
    "peft": "smec-st[llm]",
    "plotly": "smec-st[report]",
    "prometheus_client": "smec-st[serve]",
    "pyarrow": "pyarrow",
    "pydantic": "smec-st[langchain]",
    "pymilvus": "smec-st[milvus]",
    "ray": "smec-st[ray]",
    "sklearn": "smec-st[research]",
    "starlette": "smec-st[serve]",
    "uvicorn": "smec-st[serve]",
}


def load_optional(module: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Name of the module, for instance ``matplotlib.figure``.
        purpose: What needs it, as the subject of the error message ("PQ and OPQ").

    Raises:
        DataError: If the package is not installed, with the command that installs it; or if it does not load.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise DataError(f"{purpose} needs {package}, which does not load: {one_line(error)}.") from error
        raise DataError(f"{purpose} needs {package}. {how_to_install(package)}") from error
    except ImportError as error:
        raise DataError(f"{purpose} needs {package}, which does not load: {one_line(error)}.") from error


def is_installed(package: str) -> bool:
    """Return whether a package can be found, by import name."""
    return importlib.util.find_spec(package) is not None


def how_to_install(package: str) -> str:
    """Return the sentence that names the command which installs a package, given by its import name."""
    return f'Install it with `pip install "{INSTALLED_BY.get(package, "smec-st")}"`.'
