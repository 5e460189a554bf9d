"""Workers with accounts of their own, which log in by OAuth 2.0 client credentials.

::

    workers = Workers(jobber)
    app.register_blueprint(workers.blueprint)
"""

from __future__ import annotations

try:
    import authlib  # noqa: F401
except ImportError as error:
    raise ImportError("flask_jobber.accounts needs Authlib: pip install flask-jobber[oauth]") from error

from .login import Worker
from .verbs import Credentials, NoSuchWorker, TooManySecrets, WorkerExists
from .workers import Workers

__all__ = ["Credentials", "NoSuchWorker", "TooManySecrets", "Worker", "WorkerExists", "Workers"]
