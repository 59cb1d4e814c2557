"""Upload checkpoints with model cards to the Hub, by command or during training."""

from pipeline.hub.card import model_card
from pipeline.hub.facts import Facts, card_settings, read_facts, read_run
from pipeline.hub.publish import PublishError, publish, publish_command
from pipeline.hub.push import HubPush, hub_push
from pipeline.hub.upload import plan_upload

__all__ = [
    "Facts",
    "HubPush",
    "PublishError",
    "card_settings",
    "hub_push",
    "model_card",
    "plan_upload",
    "publish",
    "publish_command",
    "read_facts",
    "read_run",
]
