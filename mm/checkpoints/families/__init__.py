"""One converter for each family of public checkpoints.

A converter looks at a folder's configuration and says what to build and which tensor becomes which. To add a family,
write its converter and enter it here, by the name that ``architectures`` in ``config.json`` gives it.
"""

from collections.abc import Callable

from mm.checkpoints.convert import Converted, HubFolder
from mm.checkpoints.families.bert import convert_bert, convert_roberta
from mm.checkpoints.families.blip import convert_blip_answering, convert_blip_captioning, convert_blip_retrieval
from mm.checkpoints.families.clip import convert_clip, convert_siglip
from mm.checkpoints.families.decoders import convert_falcon, convert_gpt2, convert_llama
from mm.checkpoints.families.encoder_decoder import convert_bart, convert_mbart, convert_t5
from mm.checkpoints.families.encoder_decoder_vision import convert_vision_encoder_decoder
from mm.checkpoints.families.git import convert_git
from mm.checkpoints.families.idefics import convert_idefics

CONVERTERS: dict[str, Callable[[HubFolder], Converted]] = {
    "BertForMaskedLM": convert_bert,
    "RobertaForMaskedLM": convert_roberta,
    "BlipForConditionalGeneration": convert_blip_captioning,
    "BlipForImageTextRetrieval": convert_blip_retrieval,
    "BlipForQuestionAnswering": convert_blip_answering,
    "GitForCausalLM": convert_git,
    "VisionEncoderDecoderModel": convert_vision_encoder_decoder,
    "CLIPModel": convert_clip,
    "SiglipModel": convert_siglip,
    "GPT2LMHeadModel": convert_gpt2,
    "LlamaForCausalLM": convert_llama,
    "FalconForCausalLM": convert_falcon,
    "T5ForConditionalGeneration": convert_t5,
    "BartForConditionalGeneration": convert_bart,
    "MBartForConditionalGeneration": convert_mbart,
    "IdeficsForVisionText2Text": convert_idefics,
}
