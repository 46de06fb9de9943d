"""HTTP as all parts speak it: connections, servers, and errors as problem details."""
