"""`validator.resubmission.handler`: the Lambda entry point behind the resubmit queue, which starts batches again."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shared.aws.events import ResubmitRequest
from shared.aws.messaging import Messaging, current_messaging
from shared.aws.telemetry import logger, traced
from shared.model.errors import CouldNotCheck, MessagingError, TargetError
from shared.model.settings import Settings
from shared.resubmission import resubmit
from shared.storage.store import Store, current_store
from validator.events import EventError, Receipt, receipt_of
from validator.redelivery import pause_after, put_off


def handler(event: object, context: Any) -> dict[str, list[dict[str, str]]]:  # noqa: ARG001 -- Lambda gives both
    """Has the batches processed again that the messages of an SQS event ask for.

    Returns:
        A partial batch response: the messages that could not be carried out, and those that are no request or name a
        quarantine that is none: they go to the dead letters.

    Raises:
        EventError: The event is none of SQS.
        SettingsError: A setting is wrong, or there is no `DELTAGUARD_RESUBMIT_TARGET`.
    """
    settings = Settings.from_environment()
    records = event.get("Records") if isinstance(event, Mapping) else None
    if not isinstance(records, list):
        raise EventError("expected an SQS event with Records")
    store, messaging = current_store(), current_messaging()
    failed = []
    for record in records:
        receipt = receipt_of(record)
        if not _carried_out(store, messaging, record, receipt, settings):
            failed.append({"itemIdentifier": receipt.id})
    return {"batchItemFailures": failed}


def _carried_out(store: Store, messaging: Messaging, record: Any, receipt: Receipt, settings: Settings) -> bool:
    try:
        request = ResubmitRequest.model_validate_json(str(record.get("body", "")))
        with traced("resubmit", batch_id=request.batch_id) as annotate:
            annotate("outcome", resubmit(store, messaging, request, settings).value)
    except (ValidationError, TargetError) as error:
        detail = f"{error.error_count()} errors" if isinstance(error, ValidationError) else str(error)
        facts = {"message_id": receipt.id, "reason": detail}
        logger.error("Message holds no request to resubmit, or one of a quarantine that is none", extra=facts)
        return False
    except (CouldNotCheck, MessagingError) as error:
        logger.error("Batch not resubmitted, it will be", extra={"message_id": receipt.id, "reason": str(error)})
        chance = random.random()  # noqa: S311 -- nobody gains from guessing it
        put_off(messaging, receipt, math.ceil(pause_after(receipt.receives, chance)))
        return False
    return True
