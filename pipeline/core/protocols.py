"""The seams between stages. A stage knows these protocols and the types, never another stage.

Fakes in tests and `--mock` implement the same protocols as the real parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.types import (
    Admission,
    Completion,
    Group,
    PreparedWeights,
    PushResult,
    Sample,
    StagedDelta,
    StepResult,
    TrainBatch,
)


class Source(Protocol):
    """Where prompts come from.

    Consumed by the admission loop, one group at a time; never blocks on I/O for long.
    """

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """`num_samples` groups of `n_samples_per_prompt` PENDING samples each, in the epoch's
        shuffled order."""

    def add_samples(self, groups: list[list[Sample]]) -> None:
        """Gives groups back; they are handed out first, next time."""

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON-able data (epoch, offset, returned groups)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class EnginePool(Protocol):
    """A set of engines of one policy.

    Knows addresses, load, health and versions; not what is generated.
    """

    @property
    def endpoints(self) -> Sequence[str]:
        """Base URLs of all engines, e.g. http://127.0.0.1:31000."""

    def lease(self, session_id: str | None = None) -> AbstractAsyncContextManager[str]:
        """The base URL of the least-loaded healthy engine (the session's own if it has one), held
        for one request. Waits while none is healthy; raises EngineError when none will come
        back."""

    def version_of(self, endpoint: str) -> int:
        """The policy version that this engine last confirmed."""

    async def report_failure(self, endpoint: str, error: Exception) -> None:
        """A request failed at transport level: check the engine, and restart it if it is dead."""


class EngineClient(Protocol):
    """Token ids in, token ids out."""

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        *,
        session_id: str | None = None,
        known_experts: int = 0,
        images: Sequence[str] = (),
    ) -> Completion:
        """One completion. `sampling_params` are SGLang's (temperature, top_p, top_k,
        max_new_tokens, stop, stop_token_ids, ...). Retries with back-off inside; raises EngineError
        when the limit is reached. Where routed experts are asked for, those of the first
        `known_experts` tokens are left out. `images`: data-URLs, one for every placeholder token in
        `input_ids`, in order."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the pipeline uses."""

    def __len__(self) -> int: ...
    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...
    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any: ...


class Generate(Protocol):
    """Fills PENDING samples: tokens, log-probs, spans, status.

    Never raises for a failed rollout: status says so. `sampling`: parameters of these samples'
    requests, over those that rollouts or evaluations have.
    """

    async def __call__(
        self,
        samples: Sequence[Sample],
        *,
        evaluation: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ) -> list[Sample]: ...


class Reward(Protocol):
    """Scores the samples of one group, in place.

    A sample whose scorer failed becomes FAILED with `error` set.
    """

    async def __call__(self, samples: Sequence[Sample]) -> None: ...


class Buffer(Protocol):
    """Where finished groups wait for the learner: admit -> put or discard -> take."""

    async def admit(self) -> Admission:
        """The right of the next group to generate. Waits while K + 1 rollouts are under way."""

    def recall(
        self, group_index: int, *, under_way: bool = False
    ) -> Literal["complete", "discarded"] | None:
        """What a crash left of this group; asked once after its admission. None means that it must
        be generated, or is already (`under_way`) since before a rewind."""

    def rewind(self, restored_from: str | None) -> None:
        """The run goes back to this checkpoint (None: to its beginning), where the clock is
        already. What was trained since is offered again."""

    def discard(self, group_index: int, reason: str) -> None:
        """The group failed for good, or a filter removed it: its slot becomes a new admission."""

    async def put(self, group: Group) -> None:
        """Returns when the group is as durable as asked. Waits while the byte budget is spent."""

    async def put_encoded(self, group: EncodedGroup) -> None:
        """The same, of a group that was encoded where it was made."""

    async def take(self, rollout_id: int) -> list[Group]:
        """The `rollout_batch_size` groups of this rollout, with every deadline kept. Waits for
        them."""

    async def settled(self) -> None:
        """Waits until all that may be admitted is admitted and complete."""

    def pushing(self, policy_version: int) -> None:
        """The engines are about to be given this version."""

    def committed(self, num_trained: int, checkpoint: str) -> None:
        """A complete checkpoint covers this many rollouts."""


class Learner(Protocol):
    """The policy under training, on all its ranks."""

    async def step(self, batch: TrainBatch) -> StepResult:
        """Train on one rollout.

        Raises LearnerError and leaves the weights as they were on a non-finite loss.
        """

    async def save(self, path: Path, hf: Path | None) -> None:
        """Write `path`/torch_dist (all ranks) and the Hugging Face folder `hf` (safetensors +
        tokenizer). May return before it is written, when what is written is fixed; `saved` must
        have been true before the next one."""

    async def saved(self, *, wait: bool) -> bool:
        """Is everything that `save` began on the disk, of every rank? With `wait` this returns when
        it is.

        Raises when it could not be written."""

    async def load(self, path: Path) -> None:
        """Read what `save` wrote under `path`: weights, optimizer, schedule."""

    async def close(self) -> None: ...


class WeightTransport(Protocol):
    """Brings the learner's weights to every engine, in two parts; one push at a time."""

    async def stage(self, policy_version: int) -> bool:
        """Takes the learner's weights as they are now, as those of this version.

        True: what is staged is a copy, and the learner may go on. False: it has to wait until
        `deliver` has returned. Raises WeightSyncError.
        """

    async def deliver(self) -> PushResult:
        """Brings what is staged to every engine. Complete when every engine that is up confirms its
        version; one that is being started again gets it before it takes requests.

        Raises WeightSyncError naming the engine that did not.
        """

    async def close(self) -> None: ...


class WeightSender(Protocol):
    """The learner's side of a push: those of its ranks that send, each its own part of the weights
    (`sender` is the rank), wherever they live. Names and layouts are Hugging Face's."""

    async def prepare(self, max_bucket_bytes: int, max_copy_bytes: int | None) -> PreparedWeights:
        """Copies the current weights into buckets of at most `max_bucket_bytes` (of one tensor at
        least).

        Where a rank's copy would be larger than `max_copy_bytes` nothing is copied: buckets are
        then gathered while they are sent."""

    def sending(self) -> AbstractAsyncContextManager[None]:
        """While this lasts what was prepared can be broadcast: sender by sender, in the order of
        the buckets, each once. Raises StaleWeightsError when it was not copied and the learner has
        gone on."""

    async def meeting_place(self, sender: int) -> tuple[str, int]:
        """An address of the sender's node, as the engines reach it, and a port that is free
        there."""

    async def join(
        self, sender: int, group_name: str, address: str, port: int, world_size: int, backend: str
    ) -> None:
        """The sender enters a process group as rank 0; the engines' ranks are 1..world_size-1."""

    async def leave(self, sender: int, group_name: str) -> None: ...

    async def broadcast(self, sender: int, group_name: str, bucket: int) -> None:
        """Send one of the sender's buckets, flattened, to the group."""

    async def export_hf(self, path: Path) -> None:
        """Write the current weights as safetensors with config.json."""

    async def export_delta(self, path: Path) -> StagedDelta:
        """Write into a file what has changed since the last call (all, the first time), and keep
        the weights as they are now."""

    async def export_all(self, path: Path, reached: str) -> int:
        """Write the weights that the last `export_delta` called `reached`, all of them; returns the
        file's size."""


class WeightLender(Protocol):
    """The learner's side of a push to engines on its own devices: they are told where in memory
    they find the weights."""

    async def gather(self, max_bucket_bytes: int) -> list[list[tuple[str, str, list[int]]]]:
        """Gather the current weights into buckets; returns (name, dtype, shape) of every tensor of
        every bucket."""

    async def lend(
        self, bucket: int, metas: Sequence[tuple[str, str, list[int]]], readers: Mapping[int, int]
    ) -> dict[int, list[bytes]]:
        """Put one bucket where engines reach it. `readers`: how many ranks of engines have the
        device of a rank of the learner; returns what each of them is to be told."""

    async def take_back(self, ranks: Iterable[int]) -> None:
        """Nobody uses what these ranks of the learner lent any more."""

    async def close(self) -> None:
        """Give back all memory that was set aside for this."""


class Sink(Protocol):
    """One reader of the records: jsonl, terminal, wandb, TensorBoard. Must never stop a run."""

    def write(self, record: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...
