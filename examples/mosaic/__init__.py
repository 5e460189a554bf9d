"""A picture computed by whoever is logged in: ``python -m examples.mosaic``

A deep zoom of the Mandelbrot set is cut into tiles, one job each. Users sign up and log in;
browser tabs and scripts of theirs compute tiles, and the page shows the picture growing.
"""
