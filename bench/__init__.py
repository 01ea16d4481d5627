"""Benchmarks: every case of `strnn_kernels.testing.BENCHMARKS` beside its peers, and beside the machine's limits."""
