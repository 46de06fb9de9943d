"""What a run waits for and is sent: questions, answers, and other events."""
