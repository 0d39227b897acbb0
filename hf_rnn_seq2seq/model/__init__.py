"""The files of this folder are uploaded to the Hub with every checkpoint.

Import law: each file imports torch, transformers, huggingface_hub, the standard library, and its siblings through a
single dot, one import per line. Any other import breaks loading by `trust_remote_code` without the package installed.
Each arrow points to the imported file: configuration <- attention, recurrence <- encoder, decoder <- search <- modeling.
"""
