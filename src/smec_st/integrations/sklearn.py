"""scikit-learn: a transformer that fits a compressor on vectors, or applies one that was fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.fitting.config import FitConfig
from smec_st.integrations.sized import SizedCompressor

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import Tags
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError('this module needs scikit-learn: pip install "smec-st[sklearn]".') from error


class CompressorTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Compresses vectors, for use in pipelines and grid searches.

    Without a ``compressor``, :meth:`fit` fits one on the vectors alone, as ``PCA`` does; to fit on judgements, use
    :meth:`smec_st.Compressor.fit` and give the result.

    Args:
        n_components: Numbers per vector; by default half the width, or the widest size of ``compressor``.
        precision: How vectors come out: "float32", "float16", "int8" or "binary".
        method: A name in :data:`~smec_st.fitting.config.METHODS`, for :meth:`fit`.
        config: Settings of :meth:`fit`, on top of those of the method.
        compressor: A fitted compressor, or the folder or id on the Hub to load it from; :meth:`fit` then trains none.
        random_state: Random seed of :meth:`fit`.

    Attributes:
        compressor_: The compressor in use.
        fingerprint_: Its fingerprint. Vectors of different fingerprints must not be mixed.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        precision: str = "float32",
        method: str = "smec",
        config: FitConfig | None = None,
        compressor: Compressor | str | Path | None = None,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.precision = precision
        self.method = method
        self.config = config
        self.compressor = compressor
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: object = None) -> CompressorTransformer:  # noqa: N803
        """Fit on vectors ``(n, D)``, at least two of them; ``y`` is ignored.

        Raises:
            DataError: If the vectors or the parameters cannot be used.
        """
        rows = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2, ensure_min_features=2)
        if self.compressor is None:
            dim = rows.shape[1] // 2 if self.n_components is None else self.n_components
            self.compressor_ = Compressor.fit(
                rows, dims=(dim,), method=self.method, config=self.config, seed=self.random_state
            )
        else:
            self.compressor_ = SizedCompressor(self.compressor, None, None, self).compressor
            if self.compressor_.width != rows.shape[1]:
                raise DataError(f"vectors are {rows.shape[1]} wide; the compressor reads {self.compressor_.width}.")
        head = self.compressor_.head(self.n_components, self.precision)
        self._n_features_out = head.encode(rows[:1]).shape[1]
        self.fingerprint_ = self.compressor_.fingerprint
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """Compress vectors, ``(n, D) -> (n, n_components)``, of length 1, or codes of the ``precision``.

        Raises:
            DataError: If a row has no direction.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        return self.compressor_.head(self.n_components, self.precision).encode(rows)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # vectors come out in the `precision`
        return tags
