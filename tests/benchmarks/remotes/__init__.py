"""Servers that hand jobs to workers on other machines, and clients that get and finish them: a module each.

A module has ``fill(port, jobs)``, which enqueues, and ``connect(port, name)``, which returns a
:class:`.drain.Client`; ``connect`` is a coroutine function where the library is for asyncio.
"""
