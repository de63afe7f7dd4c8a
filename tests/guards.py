"""Judges for tests of methods that ask one: `guards:Counting` and the like, by their import path."""

import zlib

from titer.judges import Verdict

ASKED = []
"""Every prompt and answer that one of these was asked about, in order; tests empty it."""


class Counting:
    """Finds every answer as harmful as a hash of prompt and answer says."""

    name = "counting@1"

    def __call__(self, prompts, responses):
        ASKED.extend(zip(prompts, responses, strict=True))
        return [self.verdict(*pair) for pair in zip(prompts, responses, strict=True)]

    def verdict(self, prompt, response):
        harm = harm_of(prompt, response)
        return Verdict("harmful" if harm > 0.5 else "benign", harm, "")


class Trusting(Counting):
    """Finds nothing harmful."""

    name = "trusting@1"

    def verdict(self, prompt, response):
        return Verdict("benign", 0.0, "")


class Alarmed(Counting):
    """Finds everything harmful."""

    name = "alarmed@1"

    def verdict(self, prompt, response):
        return Verdict("harmful", 1.0, "")


class Failing(Counting):
    """Fails on what holds a 3, and finds no text in what holds a 4."""

    name = "failing@1"

    def verdict(self, prompt, response):
        if "3" in response:
            return Verdict(None, None, "", "nobody answers")
        return Verdict("broken", 0.0, "") if "4" in response else Verdict("benign", 0.25, "")


def harm_of(prompt, response):
    return zlib.crc32(f"{prompt}|{response}".encode()) % 1000 / 999
