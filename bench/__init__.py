"""Benchmarks: each prints a table for people and one JSON line for machines, and writes bench/results/."""
