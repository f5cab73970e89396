"""Prompt expansion: a short prompt is kept word for word and continued with details; the rules here decide with which.

Torch-free. Read `rules.additions` first; `endpoint.ChatEndpoint` asks a chat model over HTTP,
`zturbo.engine.writing.Writer` the language model that is in memory anyway.
"""
