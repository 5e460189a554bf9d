"""Workers: one loop that runs handlers on jobs, from the app's database or from servers over HTTP."""
