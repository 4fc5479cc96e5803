"""The network: core-periphery attention, blocks, rotary positions, tokens, and the backbone that they make."""
