"""Objects and functions as jobs: kept as JSON by the names that the app has declared, run on the server."""
