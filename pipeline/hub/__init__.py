"""A checkpoint folder and its card to the Hub, by hand or while training."""

from pipeline.hub.card import model_card
from pipeline.hub.facts import Facts, read_facts, settings_worth_telling
from pipeline.hub.publish import PublishError, publish, push_later
from pipeline.hub.push import HubPush, hub_push
from pipeline.hub.upload import plan_upload

__all__ = [
    "Facts",
    "HubPush",
    "PublishError",
    "hub_push",
    "model_card",
    "plan_upload",
    "publish",
    "push_later",
    "read_facts",
    "settings_worth_telling",
]
