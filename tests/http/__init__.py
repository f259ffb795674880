"""Tests of the HTTP room: raw requests against a real server, and its pure parts."""
