"""Model sizes, the registry, models of timm, conversion of plain ViTs, and the shipped weights."""
