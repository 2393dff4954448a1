"""What a request may say, as OpenAI's API has it.

Fields that are known but would change nothing here are accepted where that is harmless, and refused where an answer
would silently be another one than was asked for.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Stop = str | list[str] | None
Extra = dict[str, Any]
MOST_STOPS, MOST_STOP_LENGTH = 16, 1000


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(BaseModel):
    """The schema that an answer is to fit."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer is to be."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, which needs it")
        return self


class Sampled(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(extra="forbid")
    model: str
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop = None
    seed: Seed | None = None
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    """Ours: the ids of the prompt and of the answers come along."""
    user: str | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Sampled":
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; leave it out")
        texts = self.stops
        if len(texts) > MOST_STOPS or not all(0 < len(text) <= MOST_STOP_LENGTH for text in texts):
            raise ValueError(
                f"stop takes at most {MOST_STOPS} texts of 1 to {MOST_STOP_LENGTH} characters each"
            )
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belong to stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities of the answers' tokens come along."""
        wish = getattr(self, "logprobs", None)
        return wish is not None and wish is not False  # 0 asks for those of the chosen tokens alone


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`. Messages are read as those of training rows are."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: Extra | None = None
    """Ours, and others': variables for the chat template, such as `enable_thinking`."""
    metadata: Extra | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs belong to logprobs: true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens say different things; keep one of them")
        if self.tool_choice not in (None, "auto", "none"):
            raise ValueError("tool_choice can be auto or none; calls cannot be forced")
        return self


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[Whole] | list[list[Whole]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.echo:
            raise ValueError("echo is not supported; put the prompt in front yourself")
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is not supported; ask for n answers")
        if self.suffix:
            raise ValueError("suffix is not supported")
        return self


class EmbeddingRequest(BaseModel):
    """`POST /v1/embeddings`."""

    model_config = ConfigDict(extra="forbid")
    model: str
    input: str | list[str] | list[Whole] | list[list[Whole]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None
