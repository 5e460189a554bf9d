"""A newsletter, sent by objects and methods that are jobs: ``python -m examples.newsletter``"""
