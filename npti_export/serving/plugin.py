"""The entry point that vLLM loads in each of its processes; it imports nothing until an adapter is asked for.

vLLM only logs what goes wrong while an entry point is imported and then serves without it. So nothing is imported here
that could fail, and a server that cannot steer as it was told to is ended: answering unsteered would be silent.
"""

from __future__ import annotations

import os

ADAPTER_VARIABLE = "NPTI_ADAPTER"
PERSONALITY_VARIABLE = "NPTI_PERSONALITY"
PRESETS_VARIABLE = "NPTI_PRESETS"


def register() -> None:
    """Installs the plugin if ``NPTI_ADAPTER`` names an adapter, else does nothing; may be called several times.

    Raises:
        SystemExit: If the adapter cannot be served; with the reason in one sentence.

    >>> register()
    """
    if not os.environ.get(ADAPTER_VARIABLE):
        if os.environ.get(PERSONALITY_VARIABLE):
            raise SystemExit(
                f"npti-export: {PERSONALITY_VARIABLE} is set without {ADAPTER_VARIABLE}, so nothing would be steered; "
                "name the adapter's folder or Hub repository there."
            )
        return
    try:
        from npti_export.serving.vllm_plugin import install

        install()
    except Exception as error:
        raise SystemExit(f"npti-export: {error or type(error).__name__}") from error
