"""The training loss and the judgements that it reads."""

from smec_st.losses.relevance import Relevance
from smec_st.losses.smec import SMECLoss

__all__ = ["Relevance", "SMECLoss"]
