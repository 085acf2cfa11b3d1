from .catalog import encoder_costs as encoder_costs
from .encoder import Encoder as Encoder
from .encoder import FingerprintError as FingerprintError
from .encoder import load_encoder as load_encoder
from .isotropy import embedding_statistics as embedding_statistics
from .probe import EncoderError as EncoderError
from .timm_models import WeightsNotFoundError as WeightsNotFoundError
