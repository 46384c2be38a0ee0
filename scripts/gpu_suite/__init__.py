"""All that a GPU has to prove, in one command of at most 9 minutes: `scripts/gpu_suite.sh`.

`parts` lists what is checked, each part in a process of its own; `report` writes results.md and results.json after each part.
"""
