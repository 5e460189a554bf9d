"""The queue itself: SQLAlchemy only, no Flask."""
