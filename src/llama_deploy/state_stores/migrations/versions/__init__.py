"""The steps from an empty database to the present schema. A released step is never changed."""
