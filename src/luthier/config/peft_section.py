"""The section `peft`: adapters that the library of that name computes."""

from typing import Any, Self

from pydantic import ConfigDict, model_validator

from luthier.config.peft_types import OWN, REFUSED, needed, peft_types, prompt_types
from luthier.config.problems import Problem, impossible
from luthier.config.section import Section, Text
from luthier.config.words import did_you_mean, nearest, shown


class PeftSection(Section):
    """Adapters of the library `peft` (IA3, OFT, AdaLoRA, prompts ...). `peft: ia3` is short for `peft: {type: ia3}`.
    Further keys are the settings of peft's own class for that type."""

    model_config = ConfigDict(extra="allow")

    type: Text
    """Which: a type that the installed version of peft registers, such as `ia3`, `oft`, `vera`, `prompt_tuning`."""

    @property
    def options(self) -> dict[str, Any]:
        """The type's own settings."""
        return dict(self.model_extra or {})

    @property
    def is_prompt(self) -> bool:
        """Whether something is learned that stands before the tokens, and no layer is changed."""
        return self.type in prompt_types()

    def clashes(self, lora: bool, quant: str | None, new_tokens: bool, qat: bool) -> list[Problem]:
        """Why this section cannot work with others: `lora`, a scheme of `quant`, tokens to add, `qat`."""
        problems = []
        if lora:
            text = "lora and peft both say which adapters are trained; keep one of the two sections"
            problems.append(Problem("peft", text))
        if qat:
            text = "qat rounds weights that adapters of peft read as they are; use lora with qat, or leave out qat"
            problems.append(Problem("qat", text))
        if quant is not None and not self.is_prompt:
            text = (
                f"quant.name is {quant}, and {self.type} of peft changes layers whose weights it must see as they are; "
                "use the section lora with quant, or leave out quant"
            )
            problems.append(Problem("quant", text))
        if new_tokens:
            text = (
                "model.new_tokens have rows of their own beside the section lora, which adapters of peft have not; use "
                "the section lora, or leave them out"
            )
            problems.append(Problem("model.new_tokens", text))
        return problems

    @model_validator(mode="after")
    def _type_works(self) -> Self:
        known = peft_types()
        if known is None:
            text = (
                "the section peft needs the library peft, which is not installed; pip install 'luthier[peft]'"
            )
            raise impossible(Problem("peft.type", text))
        if why := REFUSED.get(self.type):
            raise impossible(
                Problem("peft.type", f'peft.type is "{self.type}", which does not work here: {why}')
            )
        if self.type not in known:
            working = sorted(known.keys() - REFUSED.keys())
            text = (
                f'peft.type is "{self.type}"; known: {", ".join(working)}{did_you_mean(self.type, working)}'
            )
            raise impossible(Problem("peft.type", text))
        return self

    @model_validator(mode="after")
    def _settings_are_the_types(self) -> Self:
        settings = (peft_types() or {}).get(self.type, {})
        problems = []
        for key, value in self.options.items():
            if key in OWN:
                problems.append(Problem(f"peft.{key}", f"peft.{key} is filled in by the run; remove it"))
            elif key not in settings:
                near = nearest(key, ["type", *sorted(settings)])
                meant = f"did you mean peft.{near}?" if near else f"{self.type} has no such setting"
                problems.append(Problem(f"peft.{key}", f"unknown key peft.{key}; {meant}"))
            elif value is not None and not settings[key].fits(value):
                text = f"peft.{key} is {shown(value)}; {self.type} expects {settings[key].expected()}"
                problems.append(Problem(f"peft.{key}", text))
        if self.type == "adamss" and self.options.get("use_asa"):
            text = "peft.use_asa is true, but this run keeps all subspaces of adamss; remove it"
            problems.append(Problem("peft.use_asa", text))
        for key, words in needed(self.type).items():
            if self.options.get(key) is None:
                problems.append(Problem("peft", f"peft.{key} is missing, which {self.type} needs: {words}"))
        if problems:
            raise impossible(*problems)
        return self
