"""SynBrain: from images to synthetic fMRI responses, by a variational autoencoder of voxels and a mapper to its latent.

SynBrain, arXiv 2508.10298 (NeurIPS 2025).
"""
