"""The claims made for shaped noise, tested: `python -m benchmarks.claims`; docs/claims.md says how to read it."""
