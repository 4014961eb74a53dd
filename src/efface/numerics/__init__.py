"""Pure functions of tensors that several verbs share: tiled log-sum-exp, masks, streaming moments, the unit sphere."""
