"""One run of a workflow: its host in the library's runtime, journal, inbox, clock and ending."""
