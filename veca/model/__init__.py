"""The network: core-periphery attention, blocks, rotary positions, tokens, and the backbone built from them."""
