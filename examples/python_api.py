# %% [markdown]
# # Luthier from Python
#
# The same tree and the same run as on the command line, in a few lines; then the parts below them, for people
# who write their own loop. Open it as a notebook (the cells are marked) or run it:
#
#     python examples/python_api.py [MODEL]
#
# Without MODEL it takes the demo model (about a minute of training on two CPU cores).

# %%
import json
import sys
import tempfile
from pathlib import Path

import luthier

model = sys.argv[1] if len(sys.argv) > 1 else "demo:smollm2-135m"
folder = Path(tempfile.mkdtemp(prefix="luthier-example-"))

# %% [markdown]
# ## Data: one conversation a line

# %%
colours = ["red", "green", "blue", "black", "white", "brown"]
animals = ["cat", "dog", "bird", "fish", "horse"]


def conversation(colour: str, animal: str) -> dict:
    """What we want to hear when somebody mentions an animal."""
    return {
        "messages": [
            {"role": "user", "content": f"I saw a {colour} {animal}."},
            {"role": "assistant", "content": f"{animal}: {colour}"},
        ]
    }


rows = [conversation(colour, animal) for colour in colours for animal in animals]
data = folder / "chats.jsonl"
data.write_text("".join(json.dumps(row) + "\n" for row in rows))

# %% [markdown]
# ## A run
# `check` reports every fault at once; `train` leaves a folder that describes itself.

# %%
config = luthier.check(
    {
        "model": model,
        "data": {"path": str(data), "eval_rows": 4},
        "lora": {"rank": 8},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 2, "tokens_per_step": 512},
        "eval": {"samples": 2, "answer_tokens": 12},
        "run": {"name": "first", "root": str(folder / "runs")},
    }
)
result = luthier.train(config)
print("evaluation loss", result.eval_loss, "- report in", result.report)

# %% [markdown]
# ## Talk to it
# `adapter=False` is the model before training.

# %%
assistant = luthier.load(result.folder)
print(assistant.answer("I saw a green horse.", max_new_tokens=12))
print("".join(assistant.stream("I saw a black dog.", max_new_tokens=12)))

prompt = assistant.prompt_ids("I saw a green horse.")
(completion,) = assistant.complete([prompt], max_new_tokens=4)[0]
print("log-probabilities of the answer:", [round(value, 3) for value in completion.logp])

# %% [markdown]
# ## One model for everything else
# The adapter is in PEFT's format; merged, it is a plain Hugging Face folder.

# %%
merged = luthier.merge(result.folder)
print("merged model in", merged)

# %% [markdown]
# ## Your own loop
# A batch is documents end to end plus the predictions to score in them. A policy maps it to log-probabilities.
# A loss is a sum; divide it by the count over the whole step and no split of it can change the gradient.

# %%
import torch  # noqa: E402

from luthier.data.chat import ChatTemplate  # noqa: E402
from luthier.data.loader import StepSource  # noqa: E402
from luthier.data.prepare import prepare  # noqa: E402
from luthier.methods.base import Scores  # noqa: E402
from luthier.methods.sft import SFT  # noqa: E402
from luthier.models.load import load_model, load_tokenizer, resolve_model  # noqa: E402
from luthier.models.lora import apply_lora  # noqa: E402
from luthier.models.tripwire import choose_policy  # noqa: E402

tokens = prepare([data], ChatTemplate(load_tokenizer(model)), max_length=256)
policy = choose_policy(load_model(resolve_model(model), torch.float32, torch.device("cpu"))).policy
apply_lora(policy.model, rank=8, target=["q_proj", "v_proj"])
trained = [p for p in policy.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)

method, source = SFT(), StepSource(tokens, tokens_per_step=512, micro_tokens=256)
for step in range(3):
    micro_batches = source.step(step)
    count = sum(method.count(batch) for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        loss, _ = method.loss(Scores(policy(batch)), batch)
        (loss / count).backward()
        total += float(loss.detach()) / count
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {total:.3f}")
