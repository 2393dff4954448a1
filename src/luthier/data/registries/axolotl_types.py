"""What the `type` of an Axolotl data set means: a format of Luthier, and the names of its columns there."""

from dataclasses import dataclass, field

_CHAT = "its own prompt style is replaced by the model's chat template"


@dataclass(frozen=True)
class Reading:
    """How rows of a type are read."""

    format: str
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the format's columns in such rows, where they differ."""
    note: str = ""


TYPES: dict[str, Reading] = {
    "chat_template": Reading("sharegpt"),
    "sharegpt": Reading("sharegpt"),
    "llama2_chat": Reading("sharegpt", note=_CHAT),
    "pygmalion": Reading("sharegpt", note=_CHAT),
    "alpaca": Reading("alpaca", note=_CHAT),
    "alpaca_chat": Reading("alpaca", note=_CHAT),
    "alpaca_chat.load_concise": Reading("alpaca", note=_CHAT),
    "alpaca_chat.load_qa": Reading("question_answer", note=_CHAT),
    "alpaca_w_system": Reading("alpaca", note=_CHAT),
    "alpaca_w_system.load_open_orca": Reading("question_answer", note=_CHAT),
    "orcamini": Reading("alpaca", note=_CHAT),
    "gpteacher": Reading("alpaca", note=_CHAT),
    "oasst": Reading("alpaca", {"instruction": "INSTRUCTION", "output": "RESPONSE"}, _CHAT),
    "metharme": Reading("prompt_completion", {"completion": "generation"}, _CHAT),
    "completion": Reading("text"),
    "pretrain": Reading("text"),
    "input_output": Reading("pieces"),
    "": Reading("tokenised"),
    "stepwise_supervised": Reading("stepwise"),
    "bradley_terry.chat_template": Reading("preference", {"prompt": "input"}),
    "zephyr.nectar": Reading("ranking", note="all answers are read, not only the best and a worse one"),
}

PAIRS: dict[str, Reading] = {
    "argilla": Reading("preference", {"chosen": "chosen_response", "rejected": "rejected_response"}, _CHAT),
    "argilla_chat": Reading("preference", note=_CHAT),
    "icr": Reading("preference", {"prompt": "input"}, _CHAT),
    "intel": Reading("preference", note=_CHAT),
    "prompt_pairs": Reading("preference", note=_CHAT),
    "ultra": Reading("preference", note=_CHAT),
    "default": Reading("preference", {"conversations": "messages"}),
}
"""Types of preference pairs, behind the dot of `chatml.intel`; what stands before it is a prompt style."""

LABELLED: dict[str, Reading] = {
    "argilla": Reading("unpaired", {"prompt": "instruction"}, _CHAT),
    "intel": Reading("unpaired", {"prompt": "question"}, _CHAT),
    "prompt_pairs": Reading("unpaired", note=_CHAT),
    "ultra": Reading("unpaired", note=_CHAT),
}
"""Types of single answers with a label (`rl: kto`)."""

STYLES = (
    "chatml",
    "llama3",
    "chat_template",
    "phi3",
    "gemma",
    "mistral",
    "command_r",
    "passthrough",
    "user_defined",
)

WORDS_OF_THEIR_OWN = {
    "jeopardy": "it writes `what is` before each answer",
    "reflection": "it joins an answer, a reflection and a correction in words of its own",
    "explainchoice": "it joins a question and its choices in words of its own",
    "concisechoice": "it joins a question and its choices in words of its own",
    "summarizetldr": "it puts a request of its own before each article",
    "context_qa": "it joins an article and a question in words of its own",
    "creative_acr": "it asks for critiques and revisions in words of its own",
    "alpaca_chat.load_camel_ai": "its columns are `message_1` and `message_2`: give `columns: {question: message_1, "
    "answer: message_2}` and `format: question_answer`",
}
"""Types that write more than the row holds."""


def reading_of(kind: str, rl: str | None) -> Reading | None:
    """How rows of a type are read; None if it is not known. A style behind a colon (`alpaca:phi`) says nothing here."""
    name = kind.split(":")[0].strip()
    name = name.removesuffix(".default") if name == "chat_template.default" and rl is None else name
    if name in TYPES:
        return TYPES[name]
    style, _, rest = name.partition(".")
    if style == "bradley_terry":
        return TYPES["bradley_terry.chat_template"]
    if style in STYLES:
        return (LABELLED if rl == "kto" else PAIRS).get(rest or "default")
    return None
