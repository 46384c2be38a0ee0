"""``schedule: NAME``, or ``schedule: {recipe: NAME, ...}``: fills in a published recipe for the config's batch size.

Keys in the same file as the recipe's name, and on the command line, take precedence over the recipe. Keys from an extended
file do not: otherwise a recipe would change nothing there. If a recipe has two phases, the config gets both; its own
`phases`, if it has any, override them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.config.key_paths import COMMAND_LINE, KeyPath, Origins, origin_of

if TYPE_CHECKING:
    from bellwether.optimizers.recipes import Recipe, Settings

_KINDS = ("constant", "linear", "polynomial", "cosine", "trapezoid", "step", "exponential")


def expanded(raw: dict[str, Any], origins: Origins, source: str = "") -> dict[str, Any]:
    """The config with its recipe filled in; unchanged if it names none.

    Raises:
        ConfigError: if there is no such recipe, or a key contradicts it.
    """
    schedule = raw.get("schedule")
    is_section = isinstance(schedule, dict)
    name = schedule.get("recipe") if isinstance(schedule, dict) else schedule
    if not isinstance(name, str):
        return raw
    # Imported here because the package imports torch, which most readers of configs do not need.
    from bellwether.optimizers.recipes import recipe

    where = origin_of(("schedule", "recipe") if is_section else ("schedule",), origins, source)
    try:
        chosen = recipe(name)
    except ValueError as error:
        advice = f"or write schedule.kind: {name}" if name in _KINDS else ""
        raise ConfigError("schedule", name, str(error).partition(": ")[2], advice, where) from None
    batch = _section(raw, "batch").get("global")
    if isinstance(batch, list):
        problem = f"schedule: {name} is for one batch size, and not for one that grows"
        advice = "write a whole number, or the recipe's own keys in place of its name"
        raise ConfigError("batch.global", batch, problem, advice, where)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ConfigError(
            "batch.global", batch, f"schedule: {name} needs the batch size", "write a whole number", where
        )
    settings = chosen.at(batch)

    def is_written(path: KeyPath) -> bool:
        return origin_of(path, origins, source) in (where, COMMAND_LINE)

    _check(raw, chosen, settings, where, is_written)
    phases = [_phase(each, name) for each in settings]
    left = {key: value for key, value in raw.items() if key != "phases" and (key != "schedule" or is_section)}
    raw_with_recipe = _override(phases[0], left, is_written)
    own_phases = raw.get("phases") or []
    if not isinstance(own_phases, list) or not all(isinstance(phase, dict) for phase in own_phases):
        return {**raw_with_recipe, "phases": own_phases}  # validation reports the error
    if len(phases) == 1 and (not own_phases or is_written(("phases",))):
        return {**raw_with_recipe, "phases": own_phases}
    if len(own_phases) not in (0, len(phases)) or len(phases) == 1:
        problem = (
            f"schedule: {name} has {len(phases)} phase{'s' if len(phases) > 1 else ''}, these are {len(own_phases)}"
        )
        advice = "write phases: [] to take the recipe's" + (", or a mapping for each" if len(phases) > 1 else "")
        raise ConfigError(
            "phases", f"{len(own_phases)} of them", problem, advice, origin_of(("phases",), origins, source)
        )
    merged = []
    for index, phase in enumerate(phases):
        overrides = own_phases[index] if own_phases else {}
        merged.append(_override(phase, overrides, lambda path, index=index: is_written(("phases", index, *path))))  # type: ignore[misc]
    return {**raw_with_recipe, "phases": merged}


def _check(
    raw: dict[str, Any], chosen: Recipe, settings: list[Settings], source: str, is_written: Callable[[KeyPath], bool]
) -> None:
    rule = _section(raw, "optimizer").get("name")
    if rule is not None and rule != settings[0].optimizer and is_written(("optimizer", "name")):
        advice = f"remove it, or write {settings[0].optimizer}"
        problem = f"schedule: {chosen.name} is for {settings[0].optimizer}"
        raise ConfigError("optimizer.name", rule, problem, advice, source)
    scaling = _section(raw, "scaling").get("rule")
    if scaling not in (None, "none") and is_written(("scaling", "rule")):
        problem = f"schedule: {chosen.name} scales with the batch already"
        raise ConfigError("scaling.rule", scaling, problem, "remove it", source)


def _phase(settings: Settings, name: str) -> dict[str, Any]:
    optimizer = {
        "name": settings.optimizer, "lr": settings.lr, "weight_decay": settings.weight_decay, "eps": settings.eps,
        "betas": settings.betas and list(settings.betas), "momentum": settings.momentum, "nesterov": settings.nesterov,
        "trust_bounds": settings.trust_bounds and list(settings.trust_bounds), "clip": settings.max_grad_norm,
    }  # fmt: skip
    warmup = settings.warmup_fraction if settings.warmup_epochs is None else f"{settings.warmup_epochs} epochs"
    schedule = {
        "recipe": name, "kind": settings.decay, "power": settings.power, "decay_from": settings.decay_from, "warmup": warmup,
        "warmup_power": settings.warmup_power, "start": settings.warmup_from, "final": settings.final, "drop": settings.drop,
        "interval": None if settings.interval_steps is None else f"{settings.interval_steps} steps",
        "milestones": [f"{each} epochs" for each in settings.milestones],
    }  # fmt: skip
    length = f"{settings.steps} steps" if settings.steps is not None else f"{settings.epochs} epochs"
    return {
        "scaling": {"rule": "none", "base_batch": None, "warmup": False},
        **({"duration": length} if settings.steps is not None or settings.epochs is not None else {}),
        "batch": {"global": settings.batch},
        **({"data": {"sequence_length": settings.sequence_length}} if settings.sequence_length is not None else {}),
        "optimizer": {key: value for key, value in optimizer.items() if value is not None},
        "schedule": {key: value for key, value in schedule.items() if value not in (None, [])},
    }


def _section(raw: dict[str, Any], key: str) -> dict[str, Any]:
    section = raw.get(key)
    return section if isinstance(section, dict) else {}


def _override(recipe: dict[str, Any], config: dict[str, Any], is_written: Callable[[KeyPath], bool]) -> dict[str, Any]:
    """The recipe's settings, section by section, overridden by the keys of the config for which `is_written` holds."""
    merged = {**config, **{key: value for key, value in recipe.items() if key not in config or not is_written((key,))}}
    for key, value in config.items():
        inner = recipe.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            from_recipe = {k: v for k, v in inner.items() if k not in value or not is_written((key, k))}
            merged[key] = {**value, **from_recipe}
    return merged
