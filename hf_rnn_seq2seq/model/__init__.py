"""The files of this folder travel to the Hub with every checkpoint.

Import law: each file imports torch, transformers, huggingface_hub, the standard library, and its siblings through a
single dot, one import a line. Anything else breaks `trust_remote_code` loading for people who do not have the package.
The arrows: configuration <- attention, recurrence, cache <- encoder, decoder <- modeling <- search.
"""
