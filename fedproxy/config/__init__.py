"""What an operator writes, validated and frozen.

Whoever needs a config imports the part that is needed: a worker process is handed a config and reads no file,
and most commands need none.
"""
