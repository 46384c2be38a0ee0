"""``schedule: NAME``: a published recipe in place of a schedule, filled in for the config's batch.

What is written beside the recipe's name, or on the command line, wins over what the recipe says; what comes from a file that
this one extends does not, or a recipe would change nothing there. Where a recipe has two phases the config gets them, and its
own `phases`, if it has any, are laid over them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optimizers.recipes import Recipe, Settings, recipe
from trainer.config.errors import ConfigError
from trainer.config.explain import Key, Origins, origin_of


def expanded(raw: dict[str, Any], origins: Origins, source: str = "") -> dict[str, Any]:
    """A config with its recipe filled in; as it is where it names none.

    Raises:
        ConfigError: if there is no such recipe, or the config asks for what contradicts it.
    """
    name = raw.get("schedule")
    if not isinstance(name, str):
        return raw
    where = origin_of(("schedule",), origins, source)
    try:
        chosen = recipe(name)
    except ValueError as error:
        raise ConfigError("schedule", name, str(error).partition(": ")[2], "", where) from None
    batch = _section(raw, "batch").get("global")
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ConfigError("batch.global", batch, f"schedule: {name} needs the batch", "write a whole number", where)
    settings = chosen.at(batch)

    def is_written(place: Key) -> bool:
        return origin_of(place, origins, source) in (where, "command line")

    _check(raw, chosen, settings, where, is_written)
    phases = [_phase(each, name) for each in settings]
    found = _laid_over(
        phases[0], {key: value for key, value in raw.items() if key not in ("schedule", "phases")}, is_written
    )
    own = raw.get("phases") or []
    if len(phases) == 1:
        return {**found, **({"phases": own} if own else {})}
    if len(own) not in (0, len(phases)) or not all(isinstance(phase, dict) for phase in own):
        problem = f"schedule: {name} has {len(phases)} phases"
        raise ConfigError("phases", own, problem, "write a mapping for each, {} where nothing differs", where)
    laid = [_laid_over(ours, theirs) for ours, theirs in zip(phases, own or [{}] * len(phases), strict=True)]
    return {**found, "phases": laid}


def _check(
    raw: dict[str, Any], chosen: Recipe, settings: list[Settings], source: str, is_written: Callable[[Key], bool]
) -> None:
    rule = _section(raw, "optimizer").get("name")
    if rule is not None and rule != settings[0].optimizer and is_written(("optimizer", "name")):
        advice = f"take it out, or write {settings[0].optimizer}"
        raise ConfigError(
            "optimizer.name", rule, f"schedule: {chosen.name} is for {settings[0].optimizer}", advice, source
        )
    scaling = _section(raw, "scaling").get("rule")
    if scaling not in (None, "none") and is_written(("scaling", "rule")):
        problem = f"schedule: {chosen.name} scales with the batch by itself"
        raise ConfigError("scaling.rule", scaling, problem, "take it out", source)


def _phase(settings: Settings, name: str) -> dict[str, Any]:
    optimizer = {
        "name": settings.optimizer, "lr": settings.lr, "weight_decay": settings.weight_decay, "eps": settings.eps,
        "betas": settings.betas and list(settings.betas), "momentum": settings.momentum, "nesterov": settings.nesterov,
        "trust_bounds": settings.trust_bounds and list(settings.trust_bounds), "prenormalize": settings.prenormalize,
    }  # fmt: skip
    warmup = settings.warmup_fraction if settings.warmup_epochs is None else f"{settings.warmup_epochs} epochs"
    schedule = {
        "recipe": name, "kind": settings.decay, "power": settings.power, "warmup": warmup, "start": settings.warmup_from,
        "milestones": [f"{each} epochs" for each in settings.milestones],
    }  # fmt: skip
    length = f"{settings.steps} steps" if settings.steps is not None else f"{settings.epochs} epochs"
    return {
        "scaling": {"rule": "none"},
        **({"duration": length} if settings.steps is not None or settings.epochs is not None else {}),
        "batch": {"global": settings.batch},
        **({"data": {"sequence_length": settings.sequence_length}} if settings.sequence_length is not None else {}),
        "optimizer": {key: value for key, value in optimizer.items() if value is not None},
        "schedule": {key: value for key, value in schedule.items() if value not in (None, [])},
    }


def _section(raw: dict[str, Any], key: str) -> dict[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, dict) else {}


def _laid_over(
    ours: dict[str, Any], theirs: dict[str, Any], is_written: Callable[[Key], bool] = lambda place: True
) -> dict[str, Any]:
    """What a config says over what a recipe says, section by section, as far as it is written in the right place."""
    merged = {**theirs, **{key: value for key, value in ours.items() if key not in theirs or not is_written((key,))}}
    for key, value in theirs.items():
        inner = ours.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            said = {k: v for k, v in inner.items() if k not in value or not is_written((key, k))}
            merged[key] = {**value, **said}
    return merged
