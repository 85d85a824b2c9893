"""Python imports this at its start where this folder is on PYTHONPATH: the released students have toy widths."""

from lipstream_models import STUDENTS
from toys import RELEASED

STUDENTS |= {"14b": RELEASED, "1.3b": RELEASED}
