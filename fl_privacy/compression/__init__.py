"""Smaller messages: fewer coordinates up to the secure sum, coarser ones down to the owners. Numpy only.

Upwards only what is linear, and the same for every owner, survives a sum that nobody may look into: A (sum D_k) = sum A D_k.
So owners share one public map A per round (``codec``): a rotation, a subset of coordinates, a scale per tensor. Each owner's
own largest coordinates (top-k) are no such map, and would tell which coordinates it changed. A count sketch is one, but finds
only the few coordinates that stand out, and the noise of a private update lies on all of them alike: it is left out.

Downwards there is one public model for all, so any rounding will do that gives every owner the same bits (``steps``).

Privacy: all of this is done to updates that are private already, with public numbers: post-processing, epsilon stays as it is.
"""
