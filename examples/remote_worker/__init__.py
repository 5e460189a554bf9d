"""One worker of two servers: ``python -m examples.remote_worker``"""
