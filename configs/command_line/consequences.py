"""What follows from flags that were given for flags that were not, or that say nothing beside
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from configs.command_line.preset_files import GivenFlag
from configs.command_line.spellings.reading import Reading
from configs.rules.shared_memory import apart
from configs.schema import Config
from configs.schema.data import is_procedural
from configs.schema.reward import COMPARING

# flags by name, in the order in which they were said last
Given = Mapping[str, GivenFlag]
# (what was said, the flags that said it, notes) -> what is meant
Consequence = Callable[[Config, Given, Reading], Config]


def draw_consequences(config: Config, given: Given, reading: Reading) -> Config:
    for draw in (
        _shared_devices,
        _shared_memory,
        _unsplit_sequences,
        _given_answers,
        _teacher_of_slimes,
        _unjudged_students,
        _counted_epochs,
        _one_evaluation,
    ):
        config = draw(config, given, reading)
    return config


def _shared_devices(config: Config, given: Given, reading: Reading) -> Config:
    """Engines that take turns with the learner have all of its devices, as in slime."""
    if not config.cluster.colocate or "rollout-num-gpus" in given:
        return config
    cluster = replace(config.cluster, rollout_num_gpus=config.num_learner_ranks)
    return replace(config, cluster=cluster)


def _shared_memory(config: Config, given: Given, reading: Reading) -> Config:
    """Engines on the learner's devices find the weights there. No process group can have both: NCCL
    refuses two ranks on one device."""
    if not config.cluster.colocate or "weight-transport" in given:
        return config
    way: Literal["tensor", "disk"] = "disk" if any(apart(config)) else "tensor"
    return replace(config, cluster=replace(config.cluster, weight_transport=way))


def _unsplit_sequences(config: Config, given: Given, reading: Reading) -> Config:
    """--sequence-parallel without tensor ranks, which Megatron-LM turns off too."""
    flags = config.megatron
    if not flags.get("sequence_parallel") or (flags.get("tensor_model_parallel_size") or 1) > 1:
        return config
    reading.nothing["--sequence-parallel"] = (
        "it splits sequences over tensor ranks, and --tensor-model-parallel-size is 1"
    )
    return replace(config, megatron={**flags, "sequence_parallel": False})


def _given_answers(config: Config, given: Given, reading: Reading) -> Config:
    """An answer that is given is trained on once."""
    if not config.answers_are_given or "n-samples-per-prompt" in given:
        return config
    return replace(config, rollout=replace(config.rollout, n_samples_per_prompt=1))


def _teacher_of_slimes(config: Config, given: Given, reading: Reading) -> Config:
    """slime names the address of a teacher's /generate with --rm-url."""
    distill, url = config.distill, config.reward.rm_url
    named = distill.opd_teacher_load or distill.opd_teacher_url
    if not (distill.use_opd and url) or named or config.reward.rm_type == "remote_rm":
        return config
    teacher = url.removesuffix("/generate")
    reading.renamed[f"--rm-url {url}"] = f"--opd-teacher-url {teacher}"
    return replace(
        config,
        distill=replace(distill, opd_teacher_url=teacher),
        reward=replace(config.reward, rm_url=None),
    )


def _unjudged_students(config: Config, given: Given, reading: Reading) -> Config:
    """With a teacher, a scorer that has no label to compare with is not missed."""
    scorer, data = config.reward.rm_type, config.data
    if (
        not config.distill.use_opd
        or scorer not in COMPARING
        or data.label_key is not None
        or is_procedural(data.prompt_data)
    ):
        return config
    reading.nothing[f"--rm-type {scorer}"] = (
        "without --label-key it has nothing to compare with; the teacher alone is learnt from"
    )
    return replace(config, reward=replace(config.reward, rm_type=None))


def _counted_epochs(config: Config, given: Given, reading: Reading) -> Config:
    """--num-rollout goes before --num-epoch, as in slime, unless that is said later (beside --load,
    say, which brings the --num-rollout that the run had)."""
    if config.run.num_epoch is None or _weaker(given, "num-rollout", "num-epoch") != "num-epoch":
        return config
    reading.nothing[str(given["num-epoch"])] = f"{given['num-rollout']} says how long the run is"
    return replace(config, run=replace(config.run, num_epoch=None))


def _one_evaluation(config: Config, given: Given, reading: Reading) -> Config:
    """--eval-config goes before --eval-prompt-data, as in slime, unless that is said later."""
    e = config.eval
    if e.eval_config is None or not e.eval_prompt_data:
        return config
    if _weaker(given, "eval-config", "eval-prompt-data") == "eval-config":
        return replace(config, eval=replace(e, eval_config=None))
    said = given["eval-prompt-data"]
    reading.nothing[str(said)] = f"{given['eval-config']} says what is evaluated on"
    return replace(config, eval=replace(e, eval_prompt_data=()))


def _weaker(given: Given, first: str, second: str) -> str | None:
    """Which of two flags that exclude each other counts for nothing: what a preset says, where the
    command line (or a later preset) says the other, else `second`; None where one was not said."""
    if first not in given or second not in given:
        return None
    names = list(given)
    second_is_later = names.index(second) > names.index(first)
    apart = given[first].source != given[second].source
    return first if apart and second_is_later else second
