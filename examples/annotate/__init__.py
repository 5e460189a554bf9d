"""Handwritten digits, read by whoever is logged in: ``python -m examples.annotate``

Each image is shown to two people. When both say the same, that is its label; when they do not,
others are asked. Images whose digit is known are mixed in, and tell who is to be believed.
"""
