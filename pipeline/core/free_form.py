"""Free-form values of users as JSON text: what a buffer and a snapshot can keep."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.core.images import is_pil_image, to_data_url

logger = logging.getLogger(__name__)
_told: set[str] = set()  # attributes that were named as lost
NOT_JSON = (TypeError, ValueError, RecursionError)


def _plain(value: Any) -> Any:
    """Turns into plain data what json cannot encode by itself: numpy's values and images."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if is_pil_image(value):
        return to_data_url(value)
    raise TypeError(f"{type(value).__name__} {value!r:.80} is not JSON")


encode_json = json.JSONEncoder(default=_plain).encode
decode_json = json.JSONDecoder().decode


def keepable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that JSON can say. The others are named in a warning, once in a process."""
    kept = {}
    for name, value in attributes.items():
        try:
            kept[name] = decode_json(encode_json(value))
        except NOT_JSON as error:
            if name not in _told:
                _told.add(name)
                logger.warning(
                    "sample.%s is gone once its sample is stored, for JSON cannot say it (%s)",
                    name,
                    error,
                )
    return kept
