"""Benchmarks: what the suite costs and reaches, beside what other programs do on the same data."""
