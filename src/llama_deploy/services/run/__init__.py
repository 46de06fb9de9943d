"""One run of a workflow: its assembly, host in the library's runtime, journal, inbox, clock and ending."""
