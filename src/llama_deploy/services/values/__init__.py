"""The values of a workflow as text: arguments, events, results and state."""
