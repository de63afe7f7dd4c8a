"""Judges of the hub, each under the name that the literature knows it by.

A judge is asked where it runs: `url=` names an OpenAI-compatible endpoint, otherwise transformers loads `model=` here. What is
put to it is that model's own template, and its words become one of titer's labels by a rule that its class states. What it
says against its own format is an error; it is never taken for safe.

`base` holds what they share, `questions` what is asked and answered, `local` and `classifier` and `endpoint` who is asked.
"""
