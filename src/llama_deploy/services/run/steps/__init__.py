"""How steps execute: in the event loop, in threads, with what they share."""
