"""Imported first, it spares later imports the garbage collector, which would go through all that is there each time."""

import gc

gc.disable()
