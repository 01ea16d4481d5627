"""Benchmarks: the cases of `strnn_kernels.testing` beside their peers and the machine's limits."""
