"""int8 weights for the language model, which is most of a model's memory."""

from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig
from diffusers.quantizers.quantization_config import TorchAoConfig

from kosmosg.errors import ConfigError


def int8_weights() -> PipelineQuantizationConfig:
    """Return what makes `from_pretrained` keep the MLLM's matrices as int8, a scale for each row.

    Products are computed in the model's own precision. The embedding stays as it is.

    Raises:
        ConfigError: If torchao is not installed.

    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise ConfigError(
            f"int8 weights need torchao ({error}); type pip install 'kosmosg[quant]', or leave "
            "quantization out"
        ) from None
    return PipelineQuantizationConfig(quant_mapping={"mllm": TorchAoConfig(Int8WeightOnlyConfig())})
