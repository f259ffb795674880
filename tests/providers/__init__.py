"""Tests of the room `loomgate.providers`."""
