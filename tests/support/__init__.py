"""Helpers of the tests: stand-ins that speak a real wire, and what starts and stops them."""
