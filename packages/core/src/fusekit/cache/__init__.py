"""The cache layer: what core remembers of the remote side, attributes and names (`metadata`) and bytes (`blocks`)."""
