"""Tools to look at a model: attention maps, FLOPs and memory, extracted features, export to other runtimes."""
