"""What a model does and costs: attention maps, FLOPs, extracted features, export to other runtimes."""
