"""Benchmarks: ratios measured in one run, the peer and ours in turn. `python -m
tests.benchmarks.training`
"""
