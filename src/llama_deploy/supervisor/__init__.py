"""Worker processes and the supervisor that starts, watches and replaces them; see decision 0016.

The supervisor's process imports this package and nothing that workflows need, so that it stays small.
"""
