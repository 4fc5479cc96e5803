"""Images that do not fit: streaming by pieces on one device, and patches sharded over many processes."""
