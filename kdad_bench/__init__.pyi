from kdad_bench import datasets as datasets
from kdad_bench import metrics as metrics
from kdad_bench.api.detector import Detector as Detector
from kdad_bench.api.detector import Prediction as Prediction
from kdad_bench.api.results import Results as Results
from kdad_bench.api.running import run as run

__version__: str
