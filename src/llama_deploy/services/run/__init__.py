"""One run of a workflow: the library's runtime as its host sees it, journal, mailbox and clock."""
