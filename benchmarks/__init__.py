"""Speed and memory of the losses and of training steps, beside the official code and other libraries.

Imports `taid` alone; see `python -m benchmarks --help` and docs/speed.md.
"""
