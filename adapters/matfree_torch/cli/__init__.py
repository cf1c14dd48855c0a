"""The command ``matfree network`` and the network chapter of the demo.

It may import every other package of ``matfree_torch``, and none of them imports it.
"""
