"""Tables, statements and repositories that the SQL state stores share."""
