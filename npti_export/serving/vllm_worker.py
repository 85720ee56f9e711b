"""A worker of vLLM: the tables are put into the loaded model, and before each step every token gets its row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch

from npti_export.errors import NptiError
from npti_export.serving.activation import ServedActivation
from npti_export.serving.personalities import ServedPersonalities
from npti_export.serving.settings import ServingSettings
from npti_export.serving.slots import PersonalitySlots, TokenSlots
from npti_export.serving.vllm_layers import LayerRun, run_layers
from npti_export.serving.vllm_outputs import add_to_output, dense_layers, find_served_outputs
from npti_export.serving.vllm_sites import ServedSite, describe_served_model, find_served_sites
from npti_export.steering.tables import NEUTRAL_SHIFT, SteeringRow, SteeringTables, steering_rows
from npti_export.traits import PersonalitySpec

logger = logging.getLogger("vllm.npti_export")

LAYOUT_KEY = "npti_export_layout"
"""Under which the layout stands in vLLM's ``additional_config``, which enters the key of its cache of compiled graphs:
a graph that was compiled without tables must never serve a steered model, nor one with tables of another length."""


def wrap_worker(settings: ServingSettings) -> None:
    """Lets every worker that is made from now on steer its model.

    Args:
        settings: The server's.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    # Not init_worker: a worker process loads its plugins within that call, which is then under way already.
    original = WorkerWrapperBase.init_device

    @wraps(original)
    def init_device(self: Any, *arguments: Any, **keywords: Any) -> Any:
        worker = self.worker
        check_parallelism(worker.vllm_config)
        note_layout(worker.vllm_config, dense_layers(settings.adapter))
        served = settings.personalities(worker.vllm_config.model_config.dtype)
        load = worker.load_model

        @wraps(load)
        def load_model(*given: Any, **named: Any) -> Any:
            loaded = load(*given, **named)
            steer_runner(worker.model_runner, served)
            return loaded

        worker.load_model = load_model
        return original(self, *arguments, **keywords)

    WorkerWrapperBase.init_device = init_device


def check_parallelism(vllm_config: Any) -> None:
    """Refuses what splits a step or keeps its results elsewhere.

    Raises:
        NptiError: With the option that is in the way.
    """
    parallel, passes = vllm_config.parallel_config, vllm_config.compilation_config.pass_config
    context_ranks = getattr(parallel, "prefill_context_parallel_size", 1)
    micro_batches = getattr(parallel, "enable_dbo", False) or getattr(parallel, "ubatch_size", 0) > 1
    shared_keys = getattr(vllm_config.cache_config, "kv_sharing_fast_prefill", False)
    refused = [
        (
            parallel.pipeline_parallel_size > 1,
            "--pipeline-parallel-size above 1 in this release; use --tensor-parallel-size",
        ),
        (
            context_ranks > 1,
            "--prefill-context-parallel-size above 1, which hands each rank a part of a step's tokens; use "
            "--tensor-parallel-size",
        ),
        (micro_batches, "--enable-dbo or --ubatch-size, which split a step; leave them out"),
        (
            vllm_config.kv_transfer_config is not None,
            "--kv-transfer-config or --kv-offloading-size in this release: what lies outside the server's own cache "
            "may be kept without the personality; leave them out",
        ),
        (
            shared_keys,
            "--kv-sharing-fast-prefill, which hands the later layers a part of a step's tokens; leave it out",
        ),
        (
            getattr(passes, "enable_sp", False),
            "the compilation pass enable_sp, which hands each rank a part of a step's tokens; leave it out",
        ),
    ]
    for found, what in refused:
        if found:
            raise NptiError(f"Personalities are not served with {what}.")


def note_layout(vllm_config: Any, dense: list[int]) -> None:
    """Notes what is put into the model for the cache of compiled graphs.

    Args:
        vllm_config: The engine's.
        dense: The layers behind which a table is added to the residual stream.

    Raises:
        NptiError: If there is no place for it.
    """
    if not isinstance(vllm_config.additional_config, dict):
        raise NptiError("Personalities are not served where --additional-config is no JSON object; leave it out.")
    vllm_config.additional_config[LAYOUT_KEY] = {"rows": slot_count(vllm_config), "dense": dense}


def slot_count(vllm_config: Any) -> int:
    """Rows of the tables: neutral and one for every request that a step can hold, so that none has to wait."""
    return int(vllm_config.scheduler_config.max_num_seqs) + 1


def steer_runner(runner: Any, served: ServedPersonalities) -> None:
    """Puts the tables into a runner's model and has its steps announce themselves.

    Args:
        runner: vLLM's model runner, its model loaded and not yet compiled.
        served: The server's personalities.

    Raises:
        NptiError: If the adapter does not fit the model, or the model would go round the edit.
    """
    config = runner.vllm_config
    sites = find_served_sites(runner.get_model(), config.model_config.dtype, runner.device)
    widths = [site.whole for site in sites]
    if warning := served.adapter.base_model.check_fit(describe_served_model(sites, config.model_config)):
        logger.warning("npti-export: %s.", warning)
    runs = run_layers(runner, [site.layer_name for site in sites])
    outputs = find_served_outputs(served.adapter, sites, runs)
    tokens = TokenSlots(runner.max_num_tokens, runner.device)
    count = slot_count(config)
    tables = [SteeringTables(site.site, count, outputs.get(layer)) for layer, site in enumerate(sites)]

    def fill(slot: int, spec: PersonalitySpec) -> None:
        for site, own, row in zip(sites, tables, steering_rows(served.adapter, spec, widths), strict=True):
            own.fill(slot, SteeringRow(row.cap[_slice(site)], row.shift[_slice(site)], row.residual))

    for site, own in zip(sites, tables, strict=True):
        steered = ServedActivation(site.function, site.merged, own, tokens.buffer)
        setattr(site.site.owner, site.site.attribute, steered)
        if own.output is not None and own.residual is not None:
            add_to_output(own.output, own.residual, tokens.buffer)
    prove(sites, tables, tokens, runs)
    slots = PersonalitySlots(count, fill)
    prepare = runner._prepare_inputs

    @wraps(prepare)
    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = prepare(scheduler_output, num_scheduled_tokens)
        total = scheduler_output.total_num_scheduled_tokens
        requests = [runner.requests[request_id] for request_id in runner.input_batch.req_ids]
        steerings = [
            None
            if request.sampling_params is None
            else served.steering(request.sampling_params.extra_args, request.num_prompt_tokens)
            for request in requests
        ]
        tokens.write(steerings, slots, runner.req_indices.gpu[:total], runner.positions[:total])
        return prepared

    runner._prepare_inputs = prepare_inputs
    logger.info(
        "npti-export steers %d layers, behind %d of them the residual stream; %d personalities a step, %.0f MiB.",
        len(sites),
        len(outputs),
        count - 1,
        sum(own.nbytes for own in tables) / 2**20,
    )


@torch.inference_mode()
def prove(
    sites: Sequence[ServedSite], tables: Sequence[SteeringTables], tokens: TokenSlots, runs: Sequence[LayerRun]
) -> None:
    """Runs every layer again on its token, neutral and moved by each of its tables; it must answer differently.

    Args:
        sites: Of all layers.
        tables: Of the same layers, their modules in the model; neutral again afterwards.
        tokens: The row of every token.
        runs: Of the same layers.

    Raises:
        NptiError: If one does not, because a fused kernel goes round what was put there.
    """
    for site, own, run in zip(sites, tables, runs, strict=True):
        neutral = run.again()
        moving = [(site.site.name, own.shift)]
        if own.output is not None and own.residual is not None:
            moving.append((own.output.name, own.residual))
        for name, table in moving:
            table[1].fill_(1.0)
            tokens.buffer[0] = 1
            moved = run.again()
            tokens.buffer[0] = 0
            table[1].fill_(NEUTRAL_SHIFT)
            if all(map(torch.equal, neutral, moved)):
                raise NptiError(
                    f"{name} was replaced and its layer goes round it (a fused or quantised kernel), so nothing would "
                    "be steered; serve without it."
                )


def _slice(site: ServedSite) -> slice:
    return slice(site.first, site.first + site.site.width)
