"""The Triton kernels and what launches them. The only folder of the package that imports triton."""
