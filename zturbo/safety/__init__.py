"""The safety checker: what may be handed out.

checker     what a checker is, what becomes of a flagged picture, who may switch the check off      <- read this first
open_nsfw   the default: a classifier that its package carries, run offline on the processor
classifier  any image-classification model of the transformers library, by name or folder
load        the checker and the policy that the settings ask for
prompts     the check of prompts by a guard model behind an endpoint, off by default

A checker that fails fails the request: no picture leaves unchecked.
"""
