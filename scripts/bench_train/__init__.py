"""The training benchmark: `make bench-train`. Bellwether beside other training loops, on two cores, in at most 10 minutes.

`workloads` has the models, `ours`, `loops` and `trainers` the contestants, `rank` is one process of a contestant, and
`rounds` lets them take turns. `tables` writes docs/results/training-cpu.md.
"""
