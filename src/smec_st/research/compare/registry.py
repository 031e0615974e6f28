"""The methods that can be compared, by name, cheap ones first."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from smec_st.data import DataError
from smec_st.research.baselines import Method
from smec_st.system.optional import how_to_install, is_installed

ALWAYS = ("original", "truncate", "pca")


@dataclass(frozen=True)
class Factory:
    """Makes a method, and imports its module only when it is called.

    Args:
        module: Module of the class.
        name: Name of the class.
        settings: Fields that differ from the defaults.
        package: Import name of the optional package that the method needs, if any.
    """

    module: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    package: str | None = None

    def __call__(self) -> Method:
        """Make the method."""
        return cast(Method, getattr(importlib.import_module(self.module), self.name)(**self.settings))

    @property
    def is_available(self) -> bool:
        """Whether the optional package is installed."""
        return self.package is None or is_installed(self.package)


def _baseline(module: str, name: str, **settings: Any) -> Factory:
    return Factory(f"smec_st.research.baselines.{module}", name, settings)


def _with_faiss(name: str, **settings: Any) -> Factory:
    return Factory("smec_st.research.baselines.quantizers", name, settings, package="faiss")


def _ours(name: str = "SMEC", **settings: Any) -> Factory:
    return Factory("smec_st.research.compare.ours", name, settings)


METHODS: dict[str, Factory] = {
    "original": _baseline("projections", "Original"),
    "truncate": _baseline("projections", "Truncation"),
    "pca": _baseline("projections", "PCA"),
    "pca-centred": _baseline("projections", "PCA", kind="centred"),
    "pca-whitened": _baseline("projections", "PCA", kind="whitened"),
    "variance-sorted": _baseline("projections", "VarianceSorted"),
    "random-coordinates": _baseline("projections", "RandomCoordinates"),
    "random-projection": _baseline("projections", "RandomProjection"),
    "int8": _baseline("quantizers", "Int8"),
    "binary": _baseline("quantizers", "Binary"),
    "pq": _with_faiss("PQ"),
    "opq": _with_faiss("PQ", rotation=True),
    "mrl": _baseline("mrl", "MRL", start="identity"),
    "mrl-principal": _baseline("mrl", "MRL"),
    "mrl-cosent": _baseline("mrl", "MRL", loss="cosent"),
    "matryoshka-adaptor-unsupervised": _baseline("matryoshka_adaptor", "MatryoshkaAdaptor", supervised=False),
    "adawidth": _baseline("adawidth", "AdaWidth"),
    "csr": _baseline("csr", "CSR"),
    "search-adaptor": _baseline("search_adaptor", "SearchAdaptor"),
    "dive": _baseline("dive", "DIVE"),
    "smec-published": _ours(method="smec-published"),
    "smec-published-one-term": _ours(method="smec-published", settings={"wide_weight": 0.0}),
    "smec-published-residual": _ours("ResidualSMEC", method="smec-published", settings={"learning_rate": 3e-3}),
    "matryoshka-adaptor": _baseline("matryoshka_adaptor", "MatryoshkaAdaptor"),
    "smec": _ours(),
}


def choose(names: str, labels: bool) -> tuple[dict[str, Method], list[str]]:
    """Choose the methods to compare.

    Args:
        names: ``all``, or names separated by commas; original, truncate and pca are always included.
        labels: Whether there are judgements to learn from. If not, ``all`` leaves out the methods that need them.

    Returns:
        Methods by name, in the order of :data:`METHODS`; and a message for each method that ``all`` leaves out because
        its optional package is not installed.

    Raises:
        DataError: If a name is unknown, or a named method lacks its package or its labels.
    """
    if names == "all":
        missing = [name for name, factory in METHODS.items() if not factory.is_available]
        available = {name: factory() for name, factory in METHODS.items() if name not in missing}
        chosen = {name: method for name, method in available.items() if labels or not method.needs_labels}
        return chosen, [f"left out: {_lacks_package(name)}" for name in missing]
    wanted = {name.strip() for name in names.split(",")}
    unknown = sorted(wanted - set(METHODS))
    if unknown:
        raise DataError(f"unknown method {', '.join(map(repr, unknown))}; known are all, {', '.join(METHODS)}.")
    chosen = {}
    for name, factory in METHODS.items():
        if name not in wanted and name not in ALWAYS:
            continue
        if not factory.is_available:
            raise DataError(_lacks_package(name))
        chosen[name] = factory()
        if chosen[name].needs_labels and not labels:
            raise DataError(f"{name} needs labels.")
    return chosen, []


def _lacks_package(name: str) -> str:
    package = METHODS[name].package
    return f"{name} needs {package}. {how_to_install(package)}" if package else ""
