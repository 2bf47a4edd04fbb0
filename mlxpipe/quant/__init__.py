"""How a tensor is packed: modes, claims, dialects, merging and the judge."""
