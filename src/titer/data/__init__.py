"""Records, named datasets, disjoint splits, poisoned mixtures, and the built-in corpora."""

from titer.data.datasets import available, is_named, load, with_refusals
from titer.data.files import read_jsonl, read_records, write_jsonl
from titer.data.mixtures import alignment_mixture, poison
from titer.data.named import DatasetInfo
from titer.data.prompts import normalise_prompt
from titer.data.records import Message, Record
from titer.data.splits import Overlap, check_disjoint, overlap, split_pools

__all__ = [
    "DatasetInfo",
    "Message",
    "Overlap",
    "Record",
    "alignment_mixture",
    "available",
    "check_disjoint",
    "is_named",
    "load",
    "normalise_prompt",
    "overlap",
    "poison",
    "read_jsonl",
    "read_records",
    "split_pools",
    "with_refusals",
    "write_jsonl",
]
