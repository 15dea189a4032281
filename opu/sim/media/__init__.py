"""Scattering media: random complex matrices from mirrors to points of the camera plane, defined by counters."""
