"""One converter for each family of public checkpoints.

A converter looks at a folder's configuration and says what to build and which tensor becomes which. To add a family,
write its converter and enter it here, by the name that ``architectures`` in ``config.json`` gives it.
"""

from collections.abc import Callable

from mm.checkpoints.convert import Converted, HubFolder
from mm.checkpoints.families.bert import convert_bert, convert_roberta

CONVERTERS: dict[str, Callable[[HubFolder], Converted]] = {
    "BertForMaskedLM": convert_bert,
    "RobertaForMaskedLM": convert_roberta,
}
