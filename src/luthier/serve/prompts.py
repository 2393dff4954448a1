"""From a request to an order: the prompt's ids as the model saw them in training, and how its answers are made."""

from dataclasses import dataclass
from secrets import randbits
from typing import Any

from luthier.data.calls import checked_tools
from luthier.data.chat import ChatTemplate
from luthier.data.content import Conversation
from luthier.data.conversation import checked_messages, checked_template_args
from luthier.errors import LuthierError
from luthier.rollout.live import Order
from luthier.rollout.sampling import SamplingSettings
from luthier.serve.failures import Refusal
from luthier.serve.requests import ChatRequest, CompletionRequest, Sampled
from luthier.serve.shelf import Offered


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    prompt_tokens: int | None = None
    """Most tokens of a prompt; None: as many as the model's context holds."""
    answer_tokens: int | None = None
    """Most tokens of an answer."""
    usual_answer_tokens: int = 1024
    """Most tokens of an answer where the request does not say."""
    prompts: int = 64
    """Most prompts of one request."""


def chat_prompt(offered: Offered, request: ChatRequest) -> list[int]:
    """The ids of a chat's prompt: those that training, and `luthier chat`, have for these messages.

    Raises:
        Refusal: the messages are not as they must be, or hold a control token.
    """
    template = offered.loaded.template
    if template is None:
        raise Refusal(
            400,
            f"the model {offered.name} has no chat template, so it cannot take messages; use /v1/completions",
            "no_chat_template",
        )
    tools = request.tools if request.tool_choice != "none" else None
    try:
        return conversation_ids(template, request.messages, tools, request.chat_template_kwargs)
    except LuthierError as error:
        raise Refusal(400, str(error), "invalid_messages", "messages") from error


def conversation_ids(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None = None,
    template_args: dict[str, Any] | None = None,
) -> list[int]:
    """Checks messages as those of a training row are checked, and writes the prompt. Raises RowRefused."""
    checked, _ = checked_messages(messages)
    arguments = checked_template_args(template_args)
    conversation = Conversation(checked, checked_tools(tools), arguments)
    template.refuse_control_tokens(conversation)
    return template.prompt_ids(checked, conversation.tools, arguments)


def completion_prompts(offered: Offered, request: CompletionRequest, most: int) -> list[list[int]]:
    """The ids of each prompt: texts as the model's tokenizer begins them, ids as they are.

    Raises:
        Refusal: there are too many, or one is not possible.
    """
    given = request.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]  # type: ignore[list-item]
    if not given or len(given) > most:
        raise Refusal(400, f"{len(given)} prompts; give 1 to {most}", "invalid_value", "prompt")
    return [_ids(offered, one) for one in given]


def _ids(offered: Offered, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return offered.loaded.tokenizer(prompt).input_ids
    known = offered.loaded.num_tokens
    if any(not 0 <= number < known for number in prompt):
        raise Refusal(
            400, f"a token id is outside of the vocabulary (0 to {known - 1})", "invalid_value", "prompt"
        )
    return list(prompt)


def order_for(
    offered: Offered, prompt: list[int], request: Sampled, most: int | None, limits: Limits, top: int
) -> Order:
    """The order for a prompt; `most` tokens of an answer are asked for.

    Raises:
        Refusal: it does not fit the model's context or the server's limits.
    """
    context = offered.context
    if not prompt:
        raise Refusal(400, "the prompt is empty; a model needs at least one token to go on from")
    if limits.prompt_tokens is not None and len(prompt) > limits.prompt_tokens:
        raise Refusal(
            413, f"the prompt has {len(prompt)} tokens; this server takes {limits.prompt_tokens}", "too_large"
        )
    if context is not None and len(prompt) >= context:
        raise Refusal(
            400,
            f"the prompt has {len(prompt)} tokens, but the model's context holds {context} with the answer",
            "context_length_exceeded",
        )
    if most is not None and limits.answer_tokens is not None and most > limits.answer_tokens:
        raise Refusal(413, f"this server's answers have at most {limits.answer_tokens} tokens", "too_large")
    asked = most or min(limits.usual_answer_tokens, limits.answer_tokens or limits.usual_answer_tokens)
    limit = asked if context is None else min(asked, context - len(prompt))
    settings = _settings(offered, request, limit)
    return Order(offered.name, prompt, settings, limit, top)


def _settings(offered: Offered, request: Sampled, limit: int) -> SamplingSettings:
    """What the request says, the model's generation config where it says nothing."""
    usual = offered.defaults
    temperature = usual.temperature if request.temperature is None else request.temperature
    if request.n not in (None, 1) and not temperature:
        raise Refusal(
            400, f"n is {request.n}, but at temperature 0 all answers are the same", "invalid_value", "n"
        )
    top_k = usual.top_k if request.top_k is None else max(request.top_k, 0) or None
    try:
        return SamplingSettings(
            max_new_tokens=limit,
            temperature=temperature,
            top_k=top_k,
            top_p=usual.top_p if request.top_p is None else request.top_p,
            stop=request.stops,
            seed=randbits(63) if request.seed is None else request.seed % 2**63,
            num_samples=request.n or 1,
        )
    except LuthierError as error:
        raise Refusal(400, str(error), "invalid_value") from error


def tool_names(request: ChatRequest) -> list[str]:
    """The names of the tools that may be called."""
    if request.tool_choice == "none":
        return []
    inner = [tool.get("function", tool) for tool in request.tools or []]
    names = [one.get("name") for one in inner if isinstance(one, dict)]
    return [name for name in names if isinstance(name, str)]
