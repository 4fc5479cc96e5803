"""Model sizes, the registry, timm's registry, conversion of plain ViTs, and the shipped weights."""
