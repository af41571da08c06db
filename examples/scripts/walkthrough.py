# %% [markdown]
# # A walk through dcf
#
# Run it as a script, or cell by cell in an editor that knows `# %%`.

# %%
import json

import torch

import dcf

# %% [markdown]
# ## Condense
#
# Components are text, `name:key=value`, or objects. Whatever is not said has a default.

# %%
small = dcf.condense(data="digits", matcher="dm", ipc=1, iterations=20, lr=1.0, evaluate=False)
print(small.param.storage())

# %% [markdown]
# ## Look at it
#
# Images are normalised; `space` goes back to pixels in [0, 1].

# %%
images, labels = small.tensors()
pixels = small.space.decode(images).clamp(0, 1)
for image, label in zip(pixels[:2], labels[:2], strict=True):
    print(small.classes[label])
    print("\n".join("".join(" .:*#"[int(4.99 * v)] for v in row) for row in image[0]))

# %% [markdown]
# ## Keep it
#
# One file that explains itself.

# %%
small.save("walkthrough.safetensors")
again = dcf.load("walkthrough.safetensors")
assert torch.equal(again.tensors().x, images)
print(json.dumps(again.config, indent=1))

# %% [markdown]
# ## Judge it
#
# Under a named protocol, with random real images of the same bytes beside it. One short training of one network says
# little: `networks=5` and no overrides for a number worth quoting. The name of a changed protocol shows the change.

# %%
report = dcf.evaluate(again, networks=1, overrides={"epochs": 1, "steps_min": 100}, baselines=["random"])
for row in (*report.rows, *report.baselines):
    print(f"{row.name}: {100 * row.stat.mean:.1f} % under {row.protocol}")
