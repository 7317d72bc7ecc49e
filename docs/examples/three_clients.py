"""Three clients who hold different digits: each distills, the server merges and evaluates.

python three_clients.py
"""

import torch
from sklearn.datasets import load_digits

import ddengine
import synth

digits = load_digits()
images, labels = torch.tensor(digits.images / 16).float()[:, None], torch.tensor(digits.target)
is_test = torch.arange(len(labels)) % 5 == 0
# agreed beforehand: the recipe, the names of all classes, and what networks see pixels through
recipe = synth.find("dm/digits_ipc1")
agreed = {"classes": [str(name) for name in digits.target_names]}
shared = ddengine.Preprocess.of((0.3,), (0.37,))
sets = []
for classes in ([0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]):
    mine = torch.isin(labels, torch.tensor(classes)) & ~is_test
    data = ddengine.Dataset.of((images[mine], labels[mine]), **agreed)
    sets.append(ddengine.distill(data, recipe, preprocess=shared))
merged = ddengine.merge(sets)
everything, test = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
rivals = ["random", "equal_bytes"]
print(ddengine.evaluate(merged, everything, test=test, baselines=rivals, quick=True))
