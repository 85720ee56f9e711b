"""The entry point that vLLM loads in each of its processes; it imports nothing until an adapter is asked for.

vLLM only logs what goes wrong while an entry point is imported and then serves without it. So nothing is imported here
that could fail, and a server that cannot steer as it was told to is ended: answering unsteered would be silent.
"""

from __future__ import annotations

import json
import os
import sys
from functools import wraps
from typing import Any

ADAPTER_VARIABLE = "NPTI_ADAPTER"
PERSONALITY_VARIABLE = "NPTI_PERSONALITY"
PRESETS_VARIABLE = "NPTI_PRESETS"
SLOTS_VARIABLE = "NPTI_SLOTS"
ADMIN_KEY_VARIABLE = "NPTI_ADMIN_KEY"

CONFIG_KEY = "npti_export"
"""Under which ``--additional-config`` may say the same: ``{"npti_export": {"adapter": "…"}}``."""
CONFIG_VARIABLES = {
    "adapter": ADAPTER_VARIABLE,
    "personality": PERSONALITY_VARIABLE,
    "presets": PRESETS_VARIABLE,
    "slots": SLOTS_VARIABLE,
}
"""What it may hold; the key of the endpoint may not stand on a command line."""

TAKEN_VARIABLE = "NPTI_CONFIG_TAKEN"
"""What was taken from there, as JSON. The processes that vLLM starts read the option again, when the adapter's variable
names the folder already that it was found in."""


def register() -> None:
    """Installs the plugin if ``NPTI_ADAPTER`` names an adapter, else does nothing; may be called several times.

    Where vLLM is about to read its options, ``--additional-config`` may name the adapter in its place; that other
    settings lack one is said then.

    Raises:
        SystemExit: If the adapter cannot be served; with the reason in one sentence.

    >>> register()
    """
    looked_at = _wrap_options()
    if not os.environ.get(ADAPTER_VARIABLE):
        if not looked_at:
            check_adapter_is_named()
        return
    try:
        from npti_export.serving.vllm_plugin import install

        install()
    except Exception as error:
        raise SystemExit(f"npti-export: {error or type(error).__name__}") from error


def check_adapter_is_named() -> None:
    """Refuses settings without an adapter, by which nothing would be steered.

    Raises:
        SystemExit: If there are any.

    >>> check_adapter_is_named()
    """
    if os.environ.get(ADAPTER_VARIABLE):
        return
    for variable in (PERSONALITY_VARIABLE, PRESETS_VARIABLE, SLOTS_VARIABLE, ADMIN_KEY_VARIABLE):
        if os.environ.get(variable):
            raise SystemExit(
                f"npti-export: {variable} is set without {ADAPTER_VARIABLE}, so nothing would be steered; name the "
                "adapter's folder or Hub repository there."
            )


def take_config(additional_config: Any) -> None:
    """Puts what ``--additional-config`` says into the environment of all processes, and registers.

    Args:
        additional_config: vLLM's option, a JSON object.

    Raises:
        SystemExit: If it cannot be followed; with the reason in one sentence.

    >>> take_config({"another_plugin": 1})
    """
    if not isinstance(additional_config, dict) or CONFIG_KEY not in additional_config:
        return
    own = additional_config[CONFIG_KEY]
    if not isinstance(own, dict) or not own or not set(own) <= set(CONFIG_VARIABLES):
        raise SystemExit(
            f"npti-export: --additional-config has {own!r} under {CONFIG_KEY}; an object with some of "
            f"{', '.join(CONFIG_VARIABLES)} is expected."
        )
    if wrong := [key for key, value in own.items() if type(value) not in (str, int) or value == ""]:
        raise SystemExit(
            f"npti-export: --additional-config says {wrong[0]} {own[wrong[0]]!r} under {CONFIG_KEY}; text or a number "
            "is expected."
        )
    said = json.dumps(own, sort_keys=True)
    if os.environ.get(TAKEN_VARIABLE) == said and os.environ.get(ADAPTER_VARIABLE):
        return
    for key, value in own.items():
        variable, text = CONFIG_VARIABLES[key], str(value)
        if (there := os.environ.get(variable)) and there != text:
            raise SystemExit(
                f"npti-export: --additional-config says {key} {text!r} and {variable} says {there!r}; give one."
            )
        os.environ[variable] = text
    os.environ[TAKEN_VARIABLE] = said
    register()


def _wrap_options() -> bool:
    """Lets vLLM's options be looked at before anything is made of them, if there are any in this process.

    Nothing is imported for it.
    """
    options = getattr(sys.modules.get("vllm.engine.arg_utils"), "EngineArgs", None)
    original = getattr(options, "create_engine_config", None)
    if options is None or original is None:
        return False
    if hasattr(original, "npti_export"):
        return True

    @wraps(original)
    def create_engine_config(self: Any, *arguments: Any, **keywords: Any) -> Any:
        take_config(self.additional_config)
        check_adapter_is_named()
        return original(self, *arguments, **keywords)

    create_engine_config.npti_export = True  # type: ignore[attr-defined]
    options.create_engine_config = create_engine_config
    return True
