"""What tests need and the product does not: checks of answers and streams, bodies that must be refused, coverage.

Nothing in here imports a test. Every check raises `AssertionError` with the place, the rule and what was found.
"""
