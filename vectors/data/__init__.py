"""Labelled data: what items are, how they are read, split and shown.

`read_data` takes a user's file, `read_task` a published data set by name, `split_items` and the shuffles turn items
into what is trained and tested on.
"""

from __future__ import annotations

from vectors.data.items import (
    LETTERS,
    MAX_CHOICES,
    ChoiceItem,
    DataSet,
    Item,
    Message,
    PairItem,
    ShownItem,
    TextItem,
    Understood,
    kind_of,
    summary_of,
)
from vectors.data.options import ReadOptions
from vectors.data.reading import MIN_ITEMS, read_data, read_retention
from vectors.data.split import Parts, gold_places, in_source_order, shuffle_alike, shuffle_options, split_items
from vectors.data.tasks import TASKS, HubPart, PublishedTask, read_task

__all__ = [
    "LETTERS",
    "MAX_CHOICES",
    "MIN_ITEMS",
    "TASKS",
    "ChoiceItem",
    "DataSet",
    "HubPart",
    "Item",
    "Message",
    "PairItem",
    "Parts",
    "PublishedTask",
    "ReadOptions",
    "ShownItem",
    "TextItem",
    "Understood",
    "gold_places",
    "in_source_order",
    "kind_of",
    "read_data",
    "read_retention",
    "read_task",
    "shuffle_alike",
    "shuffle_options",
    "split_items",
    "summary_of",
]
