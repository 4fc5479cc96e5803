"""Images that do not fit in memory: streamed by pieces on one device, or sharded over many processes."""
