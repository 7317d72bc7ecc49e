"""What a distilled set gives away of the images that it was made from.

Its nearest real images, and a simple membership inference. Real images that nothing was trained on
are measured the same way beside it, so that the numbers have something to be compared with.
"""

from ddengine.uses.privacy.check import run
from ddengine.uses.privacy.measure import CAUTION, SENTENCE, measure
from ddengine.uses.privacy.membership import auc

__all__ = ["CAUTION", "SENTENCE", "auc", "measure", "run"]
