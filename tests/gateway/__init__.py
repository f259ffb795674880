"""Tests of the room `loomgate.gateway`."""
