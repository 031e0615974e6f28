"""The analyses of the SMEC paper on a collection of one's own: each ``run`` writes a JSON file and a plot.

* :mod:`~smec_st.research.analysis.importance`: do the dimensions that are kept include the important ones?
* :mod:`~smec_st.research.analysis.gradients`: how large are the gradients that each block of dimensions receives?
* :mod:`~smec_st.research.analysis.convergence`: how fast does training settle, and where?
* :mod:`~smec_st.research.analysis.ablation`: what does each part of the method add?

Values attributed to the paper were read off its charts or taken from secondary sources: its text gives none of these
formulas.
"""

from __future__ import annotations
