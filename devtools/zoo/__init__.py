"""The zoo: Chroma directories as real clients of many releases write them, and what Deltaguard says of each.

    python -m devtools.zoo --count 200 --seed 1

A *history* is plain data: what which release does to a directory, step by step. A *writer*, real Chroma in an
environment of its own, does it and acknowledges each operation. The newest Chroma reads a copy; where it gives back all
that was acknowledged, the directory is healthy by definition, and Deltaguard may not call it anything else.
"""
