"""The API from outside: a real server, plain HTTP, every answer held against the official description."""
