"""The second look at outputs: validators that cost time, in a process of their own.

`process.py` is the daemon's end, `worker.py` the other one; `screener.py` lists the
validators. Only the worker imports what they need.
"""
