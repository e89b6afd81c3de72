"""A federation on one machine: the same server and client, fast."""
