"""Kernels in C for CPUs, compiled where the server runs; what they compute is what PyTorch does, in float32."""
