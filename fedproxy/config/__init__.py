"""The operator's config, validated and frozen.

Import the submodule that is needed: a worker process is handed a config and reads no file, and most commands
need no config at all.
"""
