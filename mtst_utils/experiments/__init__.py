"""The course: corpora, studies, ledger and figures behind the notebooks. Nothing in the core
imports it.
"""
