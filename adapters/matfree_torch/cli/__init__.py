"""The command ``matfree network`` and the network chapter of the demo."""
