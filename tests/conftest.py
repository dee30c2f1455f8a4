"""Makes the modules of this folder importable by the tests in the folders below."""
