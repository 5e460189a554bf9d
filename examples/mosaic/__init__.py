"""A picture computed by whoever is logged in: ``python -m examples.mosaic``

A deep zoom of the Mandelbrot set is cut into tiles, one job each. Users sign up and log in;
browser tabs and scripts of theirs compute tiles, and the page shows the picture growing. The tiles
are a batch: when the last is there, the app stitches them. What a login without a good record paints
of everybody's picture is painted by another too, and compared, so that one takes two.
"""
