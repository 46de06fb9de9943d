"""The record from which the next attempt resumes a run."""
