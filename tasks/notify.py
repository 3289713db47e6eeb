"""``latentprint notify``: a webhook is called when a scheduled run fails or is late, or a verdict changes.

``latentprint hygiene`` says that a verdict changed, and so does ``infra/examples/release_gate.py``.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

BLOCK = "latentprint-webhook"
VERDICT_CHANGED = "latentprint.verdict.changed"
OF_OURS = {"prefect.resource.id": "latentprint.run.*"}
OF_A_SCHEDULED_RUN = {"prefect.resource.role": "flow", "prefect.resource.name": "scheduled-audit"}
HEARD: dict[str, tuple[set[str], dict[str, str], dict[str, str]]] = {
    "latentprint: run failed": ({"latentprint.run.failed", "latentprint.run.crashed"}, OF_OURS, {}),
    "latentprint: run late": ({"prefect.flow-run.Late"}, {}, OF_A_SCHEDULED_RUN),
    "latentprint: verdict changed": ({VERDICT_CHANGED}, OF_OURS, {}),
}
"""Automation -> events, the resource that they are about, and one that is related."""
BODY = '{"text": {{ (event.event ~ ": " ~ (event.resource.name or event.resource.id)) | tojson }}, "payload": %s}'
PAYLOAD = "{{ event.payload | tojson }}"


def notify(url: str) -> list[str]:
    """Make the automations on the server that is configured, or change those that are there; returns their names."""
    block = Webhook(url=url).save(BLOCK, overwrite=True)
    action = CallWebhook(block_document_id=block, payload=BODY % PAYLOAD)
    with get_client(sync_client=True) as client:
        for name, (events, match, related) in HEARD.items():
            trigger = EventTrigger(
                expect=events,
                match=ResourceSpecification(match),
                match_related=ResourceSpecification(related),
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            )
            automation = AutomationCore(name=name, trigger=trigger, actions=[action])
            known = client.read_automations_by_name(name)
            if known:
                client.update_automation(known[0].id, automation)
            else:
                client.create_automation(automation)
    return list(HEARD)
