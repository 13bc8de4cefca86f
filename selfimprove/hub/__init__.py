"""`selfimprove push RUN_DIR REPO`: a run's policy and what it was trained on, for the Hugging Face Hub.

`folders` writes both repositories into a folder, `upload` sends them.
"""
