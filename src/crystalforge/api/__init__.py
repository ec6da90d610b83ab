"""What `import crystalforge` offers; the names are listed in the package's own `__init__`."""
