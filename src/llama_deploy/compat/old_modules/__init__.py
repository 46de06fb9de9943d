"""Modules of 0.6 that are elsewhere now, by their old paths.

`llama_deploy.renamed` puts each folder on the path of the package with its name.
"""
