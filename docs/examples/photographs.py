"""A set of your own photographs, and what it is worth.

    python photographs.py FOLDER       a folder with one folder of images per class

A fifth of each class is held out for the test. The same command continues after an interruption.
"""

import sys

import ddengine
import synth

data = ddengine.Dataset.folder(sys.argv[1])
recipe = synth.find("own/folder")
result = ddengine.distill(data, recipe, folder="runs/photographs")
print(ddengine.evaluate(result, data, quick=True))
print("report:", ddengine.report(result))
result.save("sets/photographs")
